"""Another program reads the store: skopeo (https://github.com/containers/skopeo)."""

import shutil
import subprocess

import pytest

from lamina.core.names import Name
from lamina.store.layout import Store
from tests.store.make import put_base, put_naming, put_stack

pytestmark = pytest.mark.skipif(
    shutil.which("skopeo") is None, reason="skopeo is not installed (apt-get install skopeo)"
)


def skopeo(*arguments):
    done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def full(store):
    store.tag_base("pico", put_base(store))
    stack = put_stack(store, "a", "b")
    store.move("support", stack, expected=None)
    put_naming(store, stack)
    return store


@pytest.mark.parametrize("ref", ["support:latest", "support:v1", "base/pico:latest"])
def test_names_are_readable(full, ref):
    digest = next(e.digest for e in full.entries() if e.ref_name == ref)
    assert skopeo("inspect", "--raw", f"oci:{full.root}:{ref}") == full.read(digest)


def test_a_copied_stack_is_a_whole_one(full, tmp_path):
    out = tmp_path / "copy"
    skopeo("copy", f"oci:{full.root}:support:v1", f"oci:{out}:support:latest")
    copy = Store.open(out, create=False)
    stack = full.resolve(Name("support"))
    assert copy.resolve(Name("support")).digest == stack.digest
    assert copy.verify().clean
    layers = [b for b in copy.manifest(stack.digest).layers if b.artifactType]
    assert len(layers) == 2
    for layer in layers:
        assert copy.lacking(copy.manifest(layer.digest)) == ()
        assert copy.resolve(Name("support")) == copy.describe(stack.digest)
