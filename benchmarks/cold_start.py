"""Cold start: `lamina --help`, `list`, `log` and `import lamina`, each in a fresh process.

Medians of several runs, on a store with a hundred named stacks.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.common import emit, home, median_seconds, parser
from lamina.core.digest import digest_bytes
from lamina.core.manifests import BaseConfig, LayerConfig, StackedLayer
from lamina.store.layout import Store

STACKS = 100


def fill(directory: Path) -> None:
    """A store with STACKS named stacks of one layer each; payloads are empty."""
    store = Store.open(directory)
    zero = digest_bytes(b"")
    base = BaseConfig(
        tensors=zero, architecture=zero, tokenizer=zero, template=zero, family="llama",
        parameters=1, dtype="bfloat16", vocab_size=1, template_origin="own",
    )  # fmt: skip
    store.tag_base("some-base", store.put_base(base, [], "nowhere"))
    for number in range(STACKS):
        config = LayerConfig(
            name=f"stack-{number}", base=base.identity, parents=(), rank=1, alpha=1,
            scaling="lora", modules=("m",), parameters=number, recipe=None, data=None,
        )  # fmt: skip
        layer = store.put_layer(config, [])
        stack = store.put_stack(base.identity, [StackedLayer(layer=layer.digest)])
        store.move(f"stack-{number}", stack, expected=None)


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=15)
    given = arguments.parse_args()
    with home(given.home) as directory:
        fill(directory)
        lamina = str(Path(sys.executable).parent / "lamina")
        commands = {
            "help_s": [lamina, "--help"],
            "list_s": [lamina, "list"],
            "log_s": [lamina, "log"],
            "import_s": [sys.executable, "-c", "import lamina"],
            "python_s": [sys.executable, "-c", "pass"],
        }
        environment = {"LAMINA_HOME": str(directory), "PATH": ""}
        row = {}
        for name, command in commands.items():

            def run(command: list[str] = command) -> None:
                subprocess.run(command, check=True, capture_output=True, env=environment)

            run()
            row[name] = round(median_seconds(run, given.repeats), 3)
    emit("cold_start", row | {"stacks": STACKS, "repeats": given.repeats}, keep=given.keep)


if __name__ == "__main__":
    main()
