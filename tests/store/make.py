"""Small objects for the store's tests: layers, bases, stacks and evidence of a few bytes."""

from lamina.core.digest import digest_bytes
from lamina.core.evidence import NAMING_TYPE, NamingEvidence
from lamina.core.manifests import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    BaseConfig,
    Descriptor,
    ExamSpec,
    LayerConfig,
    StackedLayer,
)
from lamina.store.layout import Store


def base_config(word: str = "base") -> BaseConfig:
    return BaseConfig(
        tensors=digest_bytes(word.encode()),
        architecture=digest_bytes(b"architecture"),
        tokenizer=digest_bytes(b"tokenizer"),
        template=digest_bytes(b"template"),
        family="pico",
        parameters=3,
        dtype="float32",
        vocab_size=7,
        template_origin="own",
    )


IDENTITY_OF_BASE = base_config().identity


def put_base(store: Store, word: str = "base") -> Descriptor:
    blob = store.put_bytes(word.encode() * 50, SAFETENSORS_TYPE, title="model.safetensors")
    return store.put_base(base_config(word), [blob], f"dir:{word}")


def put_layer(
    store: Store,
    word: str,
    *,
    size: int = 1000,
    parents: tuple[StackedLayer, ...] = (),
    exams: tuple[ExamSpec, ...] = (),
    payload: bytes | None = None,
    **more: object,
) -> Descriptor:
    config = LayerConfig(
        name=word,
        base=IDENTITY_OF_BASE,
        parents=parents,
        exams=exams,
        rank=1,
        alpha=2.0,
        scaling="lora",
        modules=("q_proj",),
        parameters=3,
        **more,
    )
    blobs = [
        store.put_bytes(b'{"same": "in every layer"}', JSON_TYPE, title="adapter_config.json"),
        store.put_bytes(
            payload or (word.encode() * size)[:size],
            SAFETENSORS_TYPE,
            title="adapter_model.safetensors",
        ),
    ]
    return store.put_layer(config, blobs)


def put_stack(store: Store, *words: str) -> Descriptor:
    layers = [StackedLayer(layer=put_layer(store, word).digest) for word in words]
    return store.put_stack(IDENTITY_OF_BASE, layers)


def put_naming(store: Store, subject: Descriptor, word: str = "support") -> Descriptor:
    evidence = NamingEvidence(created="2026-01-01T00:00:00Z", name=word, version=1, verdict={})
    return store.put_object(NAMING_TYPE, evidence, subject=subject)


def age(store: Store, seconds: float = 7200.0) -> None:
    """Make every file of the layout this much older."""
    import os

    for path in store.root.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))
