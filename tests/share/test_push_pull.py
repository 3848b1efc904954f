"""Pushing to and pulling from a real registry."""

import json
import shutil
import subprocess

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import BaseError, CheckError, ShareError, StoreError, UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import STACK_TYPE, Credit, ExamSpec, StackConfig, StackedLayer
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.share.parcel import parcel_of
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository
from lamina.share.wire import Access
from lamina.store.layout import Store
from tests.share import registries
from tests.share.conftest import QUICK, config_with
from tests.share.stacks import tall
from tests.store.make import IDENTITY_OF_BASE, put_base, put_layer

pytestmark = pytest.mark.slow

SIZE = 200_000
NINE = [f"layer-{number}" for number in range(9)]
TEN = [*NINE, "layer-9"]


def push_(store, place, access, text="tall", **more):
    return push(store, text, place, access, Silent(), **more)


def pull_(store, place, access, **more):
    return pull(store, place, access, Silent(), Landing(**more))


def with_base_of(store):
    put_base(store)
    return store


def test_a_stack_arrives_as_it_left(home, away, place, access):
    stack = tall(home, TEN)
    pushed = push_(home, place, access)
    assert pushed["digest"] == stack.digest
    pulled = pull_(with_base_of(away), place, access, name="mine")
    assert pulled["stack"] == stack.digest
    assert pulled["name"] == "mine:v1"
    assert away.resolve(Name("mine")) == stack
    assert away.verify().clean
    for item in away.config(away.manifest(stack.digest), StackConfig).layers:
        assert home.read(item.layer) == away.read(item.layer)
        assert away.evidence(item.layer, COST_TYPE, CostEvidence)
    sent = {i.digest for i in parcel_of(home, stack.digest).evidence}
    assert sent == {i.digest for i in parcel_of(away, stack.digest).evidence}


def test_ten_over_nine_moves_one_layer(home, away, place, access):
    tall(home, NINE, size=SIZE)
    push_(home, place, access)
    pull_(with_base_of(away), place, access)
    tall(home, TEN, size=SIZE)
    blobs = sum(b.size for b in home.manifest(_top(home)).layers)
    pushed = push_(home, place, access)
    assert blobs < pushed["sent"] < 1.1 * blobs
    pulled = pull_(away, place, access, name="ten")
    assert blobs < pulled["received"] < 1.1 * blobs
    again = push_(home, place, access)
    assert again["sent"] == 0
    assert again["blobs"] == 0


def _top(store):
    stack = store.resolve(Name("tall"))
    return store.config(store.manifest(stack.digest), StackConfig).layers[-1].layer


def test_a_single_layer_lands_on_its_parents(home, away, registry, place, access):
    stack = tall(home, TEN)
    push_(home, place, access)
    ref = parse_place(place).at(_top(home))
    pulled = pull_(with_base_of(away), str(ref), access, name="one")
    assert pulled["preview"]["kind"] == "layer"
    assert pulled["stack"] == stack.digest
    away.collect(grace_seconds=0)
    assert away.verify().clean


def alone(store, **layer):
    """A named stack of one layer."""
    store.tag_base("pico", put_base(store))
    only = put_layer(store, "only", **layer)
    stack = store.put_stack(IDENTITY_OF_BASE, (StackedLayer(layer=only.digest),))
    store.move("only", stack, expected=None)


def test_what_a_layer_withholds_is_not_sent(home, place, access):
    secret = b"nobody's business"
    spec = ExamSpec(name="e", scorer="exact", items=digest_bytes(secret), rows=1, private=True)
    alone(home, payload=secret, exams=(spec,))
    with pytest.raises(UsageError, match="carries what its layers withhold") as caught:
        push_(home, place, access, "only")
    assert "private exam e" in caught.value.faults[0]
    with Repository(parse_place(place), access) as repository:
        assert repository.head_manifest("latest") is None


def test_a_licence_that_forbids_sharing_stops_a_push(home, place, access):
    closed = Credit(layer=digest_bytes(b"x"), name="poet", author="ann", licence="CC-BY-ND-4.0")
    alone(home, origin="squashed", credits=(closed,))
    with pytest.raises(CheckError, match="a licence forbids pushing only"):
        push_(home, place, access, "only")
    assert push_(home, place, access, "only", despite="it is mine")["digest"]


def test_a_dry_run_moves_nothing(home, away, place, access):
    tall(home, NINE, size=SIZE)
    push_(home, place, access)
    shown = pull_(away, place, access, dry_run=True)
    assert shown["pulled"] is None
    assert shown["preview"]["bytes_missing"] > 9 * SIZE
    assert not list(away.blobs_dir.iterdir())
    assert "layer layer-8" in shown["text"]


def test_who_says_no_gets_nothing(home, away, place, access):
    tall(home, NINE)
    push_(home, place, access)
    asked = []

    def no(text):
        asked.append(text)
        return False

    with pytest.raises(CheckError, match="nothing was pulled"):
        pull(away, place, access, Silent(), Landing(), confirm=no)
    assert "layer-0" in asked[0]
    assert not list(away.blobs_dir.iterdir())


def test_without_its_base_nothing_lands(home, away, place, access):
    tall(home, NINE)
    push_(home, place, access)
    with pytest.raises(BaseError, match="not at hand"):
        pull_(away, place, access)
    assert not away.entries()


def test_a_push_that_would_drop_another_is_noticed(home, away, place, access):
    tall(home, NINE)
    push_(home, place, access)
    tall(away, [*NINE, "theirs"])
    with pytest.raises(CheckError, match=r"which this store does not have") as refused:
        push_(away, place, access)
    assert "--force" in refused.value.hint
    pull_(away, place, access, name="ours")  # having seen it, theirs may replace it
    push_(away, place, access)
    with pytest.raises(CheckError):
        push_(home, place, access)
    push_(home, place, access, force=True)


def test_blobs_are_mounted_from_another_repository(home, registry, access):
    tall(home, NINE, size=SIZE)
    push_(home, registry.place("mount/first"), access)
    second = push_(home, registry.place("mount/second"), access)
    assert second["mounted"] == 9
    assert second["sent"] < SIZE


def test_where_nothing_can_be_mounted_it_is_sent(home, registry, access):
    """The record says that a repository has blobs which it never had."""
    from lamina.share import mounts

    tall(home, NINE, size=SIZE)
    parcel = parcel_of(home, home.resolve(Name("tall")).digest)
    mounts.remember(home.cache_dir, parse_place(registry.place("no/such")), parcel.blobs)
    pushed = push_(home, registry.place("mount/third"), access)
    assert pushed["mounted"] == 0
    assert pushed["sent"] > 9 * SIZE


def test_a_refused_mount_is_no_failure(home, registry, access, monkeypatch):
    from lamina.share import mounts
    from tests.share import modern

    real = modern._Handler._pass

    def refuse(self):
        if "mount=" not in self.path:
            return real(self)
        return self._answer(403, {}, b"")

    monkeypatch.setattr(modern._Handler, "do_POST", refuse)
    tall(home, NINE, size=SIZE)
    parcel = parcel_of(home, home.resolve(Name("tall")).digest)
    with modern.Modern(registry.port) as front:
        place = f"oci://127.0.0.1:{front.port}/mount/refused"
        other = parse_place(f"oci://127.0.0.1:{front.port}/mount/other")
        mounts.remember(home.cache_dir, other, parcel.blobs)
        assert push_(home, place, access)["sent"] > 9 * SIZE


def test_unknown_tags_and_repositories_are_said(home, away, registry, place, access):
    tall(home, NINE)
    push_(home, place, access)
    with pytest.raises(ShareError, match="there is no") as refused:
        pull_(away, place.replace(":latest", ":v9"), access)
    assert "latest" in refused.value.hint
    assert "sha256-" not in refused.value.hint
    with pytest.raises(ShareError, match="there is no"):
        pull_(away, registry.place("no/such"), access)


def test_nobody_there(home, access):
    tall(home, NINE)
    port = registries.free_port()
    with pytest.raises(ShareError, match="no answer from 127"):
        push_(home, f"oci://127.0.0.1:{port}/a/b", access)


def test_other_peoples_images_are_refused(away, registry, access, tmp_path):
    """A container image is no stack."""
    store = Store.open(tmp_path / "other")
    blob = store.put_bytes(b"{}", "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": blob.mediaType, "digest": blob.digest, "size": 2},
        "layers": [],
    }
    ref = parse_place(registry.place("other/image"))
    with Repository(ref, access) as repository:
        repository.upload(blob, memoryview(b"{}"))
        repository.put_manifest(json.dumps(manifest).encode(), "latest")
    with pytest.raises(StoreError, match="artifactType"):
        pull_(away, str(ref), access)


def test_pushing_to_a_digest_is_refused(home, place, access):
    tall(home, NINE)
    digest = home.resolve(Name("tall")).digest
    with pytest.raises(UsageError, match="not to a digest"):
        push_(home, str(parse_place(place).at(digest)), access)


# -- who may ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    if registries.PROGRAM is None or shutil.which("htpasswd") is None:
        pytest.skip("docker-registry or htpasswd is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    with registries.running(folder, users={"ann": "se:cret"}, tls=True) as running:
        yield running


def test_tls_and_a_password(home, away, guarded, tmp_path):
    file = config_with(tmp_path / "config.json", guarded.host, "ann:se:cret")
    access = Access(ca_file=guarded.ca, credential_files=(file,), patience=QUICK)
    stack = tall(home, NINE, size=SIZE)
    push_(home, guarded.place(), access)
    pulled = pull_(with_base_of(away), guarded.place(), access)
    assert pulled["stack"] == stack.digest


@pytest.mark.parametrize("secret", [None, "ann:wrong"])
def test_a_wrong_password_is_said(home, guarded, tmp_path, secret):
    files = (config_with(tmp_path / "config.json", guarded.host, secret),) if secret else ()
    access = Access(ca_file=guarded.ca, credential_files=files, patience=QUICK)
    tall(home, NINE)
    with pytest.raises(ShareError, match="does not allow") as refused:
        push_(home, guarded.place(), access)
    assert "docker login" in refused.value.hint
    assert "wrong" not in refused.value.render()


def test_an_unknown_authority_is_refused(home, guarded):
    tall(home, NINE)
    with pytest.raises(ShareError, match="is not trusted") as refused:
        push_(home, guarded.place(), Access(patience=QUICK))
    assert "--ca-file" in refused.value.hint


def test_no_check_of_certificates_only_when_asked(home, guarded, tmp_path):
    file = config_with(tmp_path / "config.json", guarded.host, "ann:se:cret")
    tall(home, NINE)
    access = Access(tls_verify=False, credential_files=(file,), patience=QUICK)
    assert push_(home, guarded.place("lamina/unchecked"), access)["blobs"]


def test_plain_http_needs_leave(home, registry, access, monkeypatch):
    """Not to this machine by its name either, unless that is a loopback one."""
    monkeypatch.setattr("socket.getaddrinfo", resolve_to(registry.port))
    tall(home, NINE)
    place = f"oci://registry.test:{registry.port}/lamina/plain"
    with pytest.raises(ShareError):
        push_(home, place, access)
    push_(home, place, Access(plain_http=True, patience=QUICK))


def resolve_to(port):
    import socket

    real = socket.getaddrinfo

    def found(host, *arguments, **more):
        return real("127.0.0.1" if host == "registry.test" else host, *arguments, **more)

    return found


# -- other tools -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_inspects_and_copies(home, away, registry, place, access, tmp_path):
    stack = tall(home, NINE, size=SIZE)
    push_(home, place, access)
    inside = place.removeprefix("oci:")

    def skopeo(*arguments):
        done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker:{inside}")
    assert raw == home.read(stack.digest)
    with registries.running(tmp_path / "second") as second:
        target = second.place("copied/stack", "v1")
        flags = ("--src-tls-verify=false", "--dest-tls-verify=false")
        skopeo("copy", *flags, f"docker:{inside}", f"docker:{target.removeprefix('oci:')}")
        pulled = pull_(with_base_of(away), target, access)
        assert pulled["stack"] == stack.digest
        assert away.verify().clean
        layout = tmp_path / "layout"
        skopeo("copy", flags[0], f"docker:{inside}", f"oci:{layout}:tall:latest")
        assert Store.open(layout).resolve(Name("tall")).digest == stack.digest


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_a_mirror_keeps_the_evidence(home, away, registry, access, tmp_path):
    stack = tall(home, NINE)
    place = registry.place("sync/tall")
    push_(home, place, access)
    with registries.running(tmp_path / "second") as second:
        flags = ["--src-tls-verify=false", "--dest-tls-verify=false", "--all"]
        source = f"{registry.host}/sync/tall"
        done = subprocess.run(
            ["skopeo", "sync", "--src=docker", "--dest=docker", *flags, source, second.host],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        pulled = pull_(with_base_of(away), f"oci://{second.host}/tall", access)
    assert pulled["preview"]["evidence"] == len(parcel_of(home, stack.digest).evidence)
    assert away.verify().clean


def test_oras_reads_what_we_pushed(home, registry, place, access, tmp_path):
    import oras.client

    tall(home, ["only"], size=SIZE)
    push_(home, place, access)
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    name = place.removeprefix("oci://")
    found = client.get_manifest(name)
    assert found["artifactType"] == STACK_TYPE
    pulled = client.pull(target=name, outdir=str(tmp_path / "out"))
    sizes = {path: (tmp_path / "out" / path).stat().st_size for path in pulled}
    assert SIZE in sizes.values()
