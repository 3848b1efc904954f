"""A store of very many stacks, written in one go: its index would else be written for each."""

from lamina.core.digest import digest_json
from lamina.core.evidence import SCORES_TYPE, ScoresEvidence
from lamina.core.files import atomic_write
from lamina.core.manifests import (
    CONFIG_SUFFIX,
    LAYER_TYPE,
    REF_NAME,
    ImageIndex,
    ImageManifest,
    LayerConfig,
    StackedLayer,
)
from lamina.store.refs import SUBJECT
from tests.books import ZERO, Books, exam


def many(root, count, *, versions=1):
    """`stack-0` … with two layers each, the lower one shared by ten, and a result for each."""
    books = Books(root)
    store = books.store
    entries = list(store.entries())
    for number in range(count):
        below = _layer(store, books.base, f"base-{number // 10}", ())
        for version in range(1, versions + 1):
            carries = (exam(f"exam-{number}"),)
            over = {"exams": carries, "parameters": 10 * number + version}
            top = _layer(store, books.base, f"layer-{number}", (below,), **over)
            layers = [StackedLayer(layer=digest) for digest in (below, top)]
            stack = store.put_stack(books.base, layers)
            tags = [f"v{version}"] + (["latest"] if version == versions else [])
            entries += [
                stack.model_copy(update={"annotations": {REF_NAME: f"stack-{number}:{tag}"}})
                for tag in tags
            ]
        entries.append(_score(store, stack, f"exam-{number}"))
    atomic_write(store.index_path, ImageIndex(manifests=tuple(entries)).to_bytes())
    return store


def _layer(store, base, name, parents, **fields):
    config = LayerConfig(
        name=name,
        base=base,
        parents=tuple(StackedLayer(layer=digest) for digest in parents),
        **{"rank": 4, "alpha": 8, "scaling": "lora", "modules": ("m",), "parameters": 9} | fields,
    )
    return store.put_object(LAYER_TYPE, config).digest


def _score(store, stack, name):
    record = ScoresEvidence(
        created="2026-01-01T00:00:00+00:00",
        exam_digest=digest_json(name),
        scorer="exact",
        max_new_tokens=128,
        engine=ZERO,
        items=((1, 1, "a"), (0, 1, "b")),
    )
    manifest = ImageManifest(
        artifactType=SCORES_TYPE,
        config=store.put_bytes(record.to_bytes(), SCORES_TYPE + CONFIG_SUFFIX),
        layers=(),
        subject=stack,
    )
    stored = store.put_manifest(manifest)
    return stored.model_copy(update={"annotations": {SUBJECT: stack.digest}})
