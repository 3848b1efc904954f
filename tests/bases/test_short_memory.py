"""A base that memory does not suffice for says so, in a child process with a real limit."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from lamina.core.report import Silent
from lamina.data.read import read
from lamina.flows.bases import pull
from lamina.stack.compile import base_directory
from lamina.store.layout import Store
from lamina.train.tiny_diffusion import Length, build
from tests.pico import pico_base
from tests.pictures import PICO, image_zip, pico_pipeline, shapes

pytestmark = pytest.mark.slow

CHILD = """
import json, resource, sys
from pathlib import Path

import torch

from lamina.bases import load, pipeline
from lamina.core.errors import LaminaError

kind, small, large, room = sys.argv[1], *map(Path, sys.argv[2:4]), int(sys.argv[4])

def read(folder):
    reads = pipeline.load if kind == "image" else load.load
    return reads(folder, dtype=torch.float32)

read(small)  # whatever is imported on the way is there now
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
taken = 1024 * int(status["VmSize"].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + room, resource.RLIM_INFINITY))
try:
    said = read(large) and None
except LaminaError as error:
    said = [type(error).__name__, error.message, error.hint]
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
print(json.dumps(said))
"""


ROOM = 12 << 20
"""Bytes beyond what the process has: enough for small things, a fraction of the larger bases."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """kind -> a small base and one of 30 to 150 MB, as folders of a store."""
    root = tmp_path_factory.mktemp("bases")
    store = Store.open(root / "store")
    data = read([image_zip(root / "shapes.zip", shapes())]).examples
    wide = replace(PICO, denoiser=(160, 160), text=160)
    build(data, root / "wide", wide, Length(None, 1), work=root / "work")
    pull(store, str(pico_pipeline()), "canvas", Silent())
    pull(store, str(root / "wide"), "wide", Silent())
    pull(store, str(pico_base(root / "small", hidden=32)), "small", Silent())
    pull(store, str(pico_base(root / "large", hidden=1024, layers=4)), "large", Silent())
    for name in ("small", "large"):
        pull(store, name, f"{name}-int8", Silent(), quantise="int8")
    folder = {name: base_directory(store, base) for name, base in store.bases().items()}
    return {
        "plain": (folder["small"], folder["large"]),
        "int8": (folder["small-int8"], folder["large-int8"]),
        "image": (folder["canvas"], folder["wide"]),
    }


@pytest.mark.parametrize("kind", ["plain", "int8", "image"])
def test_the_hint_is_about_memory(bases, kind):
    assert sum(file.stat().st_size for file in bases[kind][1].iterdir()) > 2 * ROOM
    given = [sys.executable, "-c", CHILD, kind, *map(str, bases[kind]), str(ROOM)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kind_of, message, hint = json.loads(done.stdout.splitlines()[-1])
    assert kind_of == "BaseError"
    assert "not enough memory" in message
    assert "smaller base" in hint
    assert "--stream" in hint
    assert "pull the base again" not in hint
