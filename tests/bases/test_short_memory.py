"""A base that memory does not suffice for says so, in a child process with a real limit."""

import json
import subprocess
import sys

import pytest

from tests.pico import pico_base
from tests.pictures import pico_pipeline

pytestmark = pytest.mark.slow

CHILD = """
import json, resource, sys
from pathlib import Path

import torch

from lamina.bases import load, pipeline
from lamina.core.errors import LaminaError

kind, small, large, room = sys.argv[1], *map(Path, sys.argv[2:4]), int(sys.argv[4])

def read(folder):
    if kind == "image":
        return pipeline.load(folder, dtype=torch.float32)
    return load.load(folder, dtype=torch.float32, stream=kind == "stream")

read(small)  # whatever is imported on the way is there now
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
taken = 1024 * int(status["VmSize"].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + room, resource.RLIM_INFINITY))
held = []
try:
    for _ in range(1000):
        held.append(read(large))
    said = None
except LaminaError as error:
    said = [type(error).__name__, error.message, error.hint]
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """kind -> a small and a larger base of that kind, as folders of a store."""
    from lamina.core.report import Silent
    from lamina.flows.bases import pull
    from lamina.stack.compile import base_directory
    from lamina.store.layout import Store

    root = tmp_path_factory.mktemp("bases")
    store = Store.open(root / "store")
    pull(store, str(pico_pipeline()), "canvas", Silent())
    pull(store, str(pico_base(root / "large", hidden=512, layers=4)), "large", Silent())
    pull(store, "large", "packed", Silent(), quantise="int8")
    small = pico_base(root / "small", hidden=32)
    canvas, large, packed = (
        base_directory(store, store.bases()[name]) for name in ("canvas", "large", "packed")
    )
    return {
        "plain": (small, large),
        "stream": (small, large),
        "int8": (packed, packed),
        "image": (canvas, canvas),
    }


@pytest.mark.parametrize("kind", ["plain", "stream", "int8", "image"])
@pytest.mark.parametrize("room", [1 << 20, 24 << 20, 64 << 20])
def test_the_hint_is_about_memory(bases, kind, room):
    given = [sys.executable, "-c", CHILD, kind, *map(str, bases[kind]), str(room)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kind_of, message, hint = json.loads(done.stdout.splitlines()[-1])
    assert kind_of == "BaseError"
    assert "not enough memory" in message
    assert "smaller base" in hint
    assert "--stream" in hint
    assert "pull the base again" not in hint
