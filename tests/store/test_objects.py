import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.core.digest import canonical_json
from lamina.core.errors import (
    CorruptBlobError,
    MissingBlobError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from lamina.core.manifests import (
    BASE_TYPE,
    CONFIG_SUFFIX,
    IDENTITY,
    LAYER_TYPE,
    MANIFEST_TYPE,
    SOURCE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import DigestPrefix
from tests.store.make import (
    IDENTITY_OF_BASE,
    base_config,
    put_base,
    put_layer,
    put_naming,
    put_stack,
)

NOWHERE = "sha256:" + "0" * 64


def lost(digit, size=3):
    return Descriptor(mediaType="text/plain", digest="sha256:" + digit * 64, size=size)


def test_object_round_trip(store):
    layer = put_layer(store, "a")
    manifest = store.manifest(layer.digest)
    assert layer == store.describe(layer.digest)
    assert layer.artifactType == manifest.artifactType == LAYER_TYPE
    assert manifest.config.mediaType == LAYER_TYPE + CONFIG_SUFFIX
    config = store.config(manifest, LayerConfig)
    assert (config.name, config.recipe, config.data) == ("a", None, None)
    assert [b.title for b in manifest.layers] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_all_missing_blobs_are_listed_at_once(store):
    wrong_size = store.put_bytes(b"abc", "text/plain").model_copy(update={"size": 4})
    manifest = ImageManifest(
        artifactType=LAYER_TYPE, config=lost("1"), layers=(lost("2"), wrong_size)
    )
    with pytest.raises(MissingBlobError) as caught:
        store.put_manifest(manifest)
    assert len(caught.value.faults) == 3
    assert "3 bytes instead of 4" in str(caught.value)
    assert not store.has(manifest.content_digest())


def test_manifest_over_damaged_blob_is_refused(store):
    blob = store.put_bytes(b"abcdef", "text/plain")
    store.path(blob.digest).write_bytes(b"abcdeX")
    with pytest.raises(CorruptBlobError, match=blob.digest):
        store.put_manifest(ImageManifest(artifactType="x", config=blob, layers=()))


def test_pulled_manifest_keeps_its_bytes(store):
    blob = store.put_bytes(b"{}", "x" + CONFIG_SUFFIX)
    spaced = json.dumps(
        ImageManifest(artifactType="x", config=blob, layers=()).model_dump(exclude_none=True),
        indent=3,
    ).encode()
    found = store.put_manifest(spaced)
    assert store.read(found.digest) == spaced
    assert (found.size, found.artifactType) == (len(spaced), "x")


MANIFEST = {
    "schemaVersion": 2,
    "mediaType": MANIFEST_TYPE,
    "artifactType": "x",
    "config": {"mediaType": "y", "digest": NOWHERE, "size": 2},
    "layers": [],
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deeper than"),
        (b'{"schemaVersion":2,"schemaVersion":2}', "comes twice"),
        (b'{"schemaVersion":NaN}', "NaN"),
        (canonical_json({**MANIFEST, "extra": 1}), "unknown key"),
        (canonical_json({**MANIFEST, "schemaVersion": 1}), "schemaVersion"),
        (
            canonical_json(
                {**MANIFEST, "config": {"mediaType": "y", "digest": "sha256:../../x", "size": 2}}
            ),
            "digest",
        ),
        (
            canonical_json(
                {**MANIFEST, "config": {"mediaType": "y", "digest": NOWHERE, "size": -1}}
            ),
            "size",
        ),
        (b" " * ((4 << 20) + 1), "at most"),
    ],
)
def test_hostile_manifests_are_refused(store, data, message):
    digest = store.put_bytes(data, MANIFEST_TYPE).digest
    with pytest.raises(StoreError, match=message):
        store.manifest(digest)
    with pytest.raises((StoreError, UsageError), match=message):
        store.put_manifest(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(st.sampled_from([*MANIFEST, "subject"]), json_values, min_size=1))
def test_no_manifest_makes_anything_but_our_errors(store, changes):
    data = json.dumps({**MANIFEST, **changes}).encode()
    with pytest.raises((StoreError, UsageError)):
        store.put_manifest(data)  # the config is missing even where the JSON is right


def test_config_of_another_type_is_refused(store):
    layer = store.manifest(put_layer(store, "a").digest)
    with pytest.raises(StoreError, match="is not valid"):
        store.config(layer, StackConfig)
    odd = layer.model_copy(update={"artifactType": STACK_TYPE})
    with pytest.raises(StoreError, match="expected"):
        store.config(odd, LayerConfig)


def test_stack_is_deterministic_and_self_contained(store):
    stack = put_stack(store, "a", "b")
    assert stack == put_stack(store, "a", "b") != put_stack(store, "b", "a")
    manifest = store.manifest(stack.digest)
    assert stack.artifactType == STACK_TYPE
    digests = [blob.digest for blob in manifest.layers]
    assert len(set(digests)) == len(digests)  # the adapter_config that both share comes once
    carried = [b for b in manifest.layers if b.mediaType == MANIFEST_TYPE]
    config = store.config(manifest, StackConfig)
    assert [b.digest for b in carried] == [item.layer for item in config.layers]
    assert {b.artifactType for b in carried} == {LAYER_TYPE}
    for layer in carried:
        inner = store.manifest(layer.digest)
        assert {b.digest for b in (inner.config, *inner.layers)} <= set(digests)
    assert all(not blob.title for blob in manifest.layers)


def test_same_layer_twice_and_no_layer(store):
    layer = put_layer(store, "a").digest
    twice = store.put_stack(
        IDENTITY_OF_BASE, [StackedLayer(layer=layer), StackedLayer(layer=layer, weight=0.5)]
    )
    config = store.config(store.manifest(twice.digest), StackConfig)
    assert [item.weight for item in config.layers] == [1.0, 0.5]
    assert store.manifest(store.put_stack(IDENTITY_OF_BASE, []).digest).layers == ()


def test_stack_of_things_that_are_no_layers(store):
    stack = put_stack(store, "a")
    with pytest.raises(UsageError) as caught:
        store.put_stack(
            IDENTITY_OF_BASE, [StackedLayer(layer=stack.digest), StackedLayer(layer=NOWHERE)]
        )
    assert len(caught.value.faults) == 2
    with pytest.raises(MissingBlobError, match=NOWHERE):
        store.put_stack(IDENTITY_OF_BASE, [StackedLayer(layer=NOWHERE)])


def test_base_is_found_by_identity_and_stored_once(store):
    base = put_base(store)
    assert base.annotations == {IDENTITY: IDENTITY_OF_BASE, SOURCE: "dir:base"}
    before = store.index_path.read_bytes()
    other_blob = store.put_bytes(b"converted differently", "text/plain")
    again = store.put_base(base_config().model_copy(update={"licence": "x"}), [other_blob], "hf:x")
    assert again == base == store.find_base(IDENTITY_OF_BASE)
    assert store.index_path.read_bytes() == before
    config = store.config(store.manifest(base.digest), BaseConfig)
    assert config.identity == IDENTITY_OF_BASE


def test_damaged_base_is_replaced_by_a_new_pull(store):
    base = put_base(store)
    payload = store.manifest(base.digest).layers[0]
    store.path(payload.digest).unlink()
    blob = store.put_bytes(b"the same tensors, other bytes", "text/plain")
    healed = store.put_base(base_config(), [blob], "hf:x")
    assert healed.digest != base.digest
    assert store.find_base(IDENTITY_OF_BASE) == healed
    assert store.verify().clean


def test_unknown_base_says_how_to_get_it(store):
    with pytest.raises(UnknownNameError, match="lamina base pull"):
        store.find_base(NOWHERE)


def test_base_names(store):
    base, other = put_base(store), put_base(store, "other")
    store.tag_base("pico", base)
    store.tag_base("pico", base)
    store.tag_base("pico-2", other)
    assert store.bases() == {"pico": base, "pico-2": other}
    assert store.resolve_base("pico") == base
    assert store.names() == {}
    store.tag_base("pico", other)
    assert store.resolve_base("pico") == other
    store.untag_base("pico")
    with pytest.raises(UnknownNameError, match="pico-2"):
        store.resolve_base("pico")
    with pytest.raises(UnknownNameError):
        store.untag_base("pico")
    assert store.find_base(IDENTITY_OF_BASE) == base  # its root stays
    with pytest.raises(UsageError, match="is no base"):
        store.tag_base("x", put_layer(store, "a"))
    with pytest.raises(UsageError, match="is not a name"):
        store.tag_base("A/b", base)


def test_evidence_is_found_from_its_subject_oldest_first(store):
    stack, other = put_stack(store, "a"), put_stack(store, "b")
    first, second = put_naming(store, stack, "one"), put_naming(store, stack, "two")
    put_naming(store, other, "three")
    assert put_naming(store, stack, "one") == first
    assert store.referrers(stack.digest) == (first, second)
    assert store.referrers(stack.digest, first.artifactType) == (first, second)
    assert store.referrers(stack.digest, BASE_TYPE) == ()
    assert store.referrers(NOWHERE) == ()


def test_evidence_about_nothing_is_refused(store):
    with pytest.raises(MissingBlobError, match="subject"):
        put_naming(store, lost("3"))


def test_object_without_subject_is_not_listed(store):
    stack = put_stack(store)
    assert store.entries() == ()
    assert store.resolve(DigestPrefix(stack.digest.removeprefix("sha256:"))) == stack
