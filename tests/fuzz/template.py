"""Chat templates from strangers: any text, and any mix of what templates are made of."""

import atheris

with atheris.instrument_imports(include=["lamina"]):
    from lamina.tokens import meter, sandbox

from tests.fuzz.driver import fuzz
from tests.fuzz.seeds import PIECES, TEMPLATES

meter.CHARACTERS, meter.STEPS, meter.SECONDS = 100_000, 20_000, 2.0  # more executions a second
GIVEN = {"messages": [{"role": "user", "content": "hi\n"}], "tools": None, "bos_token": "<s>"}


def read(data: bytes) -> None:
    """A template may refuse, and raise what it likes; what it writes is bounded."""
    texts = [data.decode("utf-8", "replace"), "".join(PIECES[i % len(PIECES)] for i in data[:60])]
    for text in texts:
        try:
            found = sandbox.render(text, GIVEN)
        except Exception:  # (the renderer turns all of them into a DataError)
            continue
        assert len(found) <= 200_000


if __name__ == "__main__":
    fuzz(read, TEMPLATES, max_len=2048)
