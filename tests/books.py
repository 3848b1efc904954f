"""A store in which layers are only what their configs say: no tensors, quick to make many of."""

from lamina.core.digest import digest_bytes, digest_json
from lamina.core.evidence import NAMING_TYPE, SCORES_TYPE, NamingEvidence, ScoresEvidence
from lamina.core.manifests import BaseConfig, ExamSpec, LayerConfig, StackedLayer
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING

ZERO = digest_bytes(b"")


class Books:
    """A store in which layers are only what their configs say."""

    def __init__(self, root):
        self.store = Store.open(root)
        base = BaseConfig(
            tensors=ZERO, architecture=ZERO, tokenizer=ZERO, template=ZERO, family="llama",
            parameters=1, dtype="bfloat16", vocab_size=1, template_origin="own",
        )  # fmt: skip
        self.store.tag_base("pico", self.store.put_base(base, [], "nowhere"))
        self.base = base.identity
        self.minute = 0

    def layer(self, name, on=(), *, number=0, **fields):
        """A layer over others; equal arguments, equal layer."""
        config = {
            "name": name,
            "base": self.base,
            "parents": tuple(StackedLayer(layer=digest) for digest in on),
            "rank": 1,
            "alpha": 1,
            "scaling": "lora",
            "modules": ("m",),
            "parameters": number,
        }
        return self.store.put_layer(LayerConfig(**config | fields), []).digest

    def put(self, *layers):
        return self.store.put_stack(self.base, [StackedLayer(layer=layer) for layer in layers])

    def name(self, name, *layers):
        """Move a name to a stack of layers, a minute after the last move."""
        stack = self.put(*layers)
        version = self.store.move(name, stack, expected=ANYTHING)
        self.minute += 1
        record = NamingEvidence(
            created=f"2026-01-01T00:{self.minute:02}:00+00:00",
            name=name,
            version=version,
            verdict={"passed": True},
            author="ann",
        )
        self.store.put_evidence(NAMING_TYPE, record, stack)
        return stack

    def score(self, stack, exam, *items, scorer="exact"):
        record = ScoresEvidence(
            created="2026-01-01T00:00:00+00:00",
            exam_digest=digest_json(exam),
            scorer=scorer,
            max_new_tokens=1,
            engine=ZERO,
            items=items,
        )
        self.store.put_evidence(SCORES_TYPE, record, stack)


def exam(name, scorer="exact"):
    """An exam of two questions that nobody has."""
    return ExamSpec(name=name, scorer=scorer, items=digest_json(name), rows=2)
