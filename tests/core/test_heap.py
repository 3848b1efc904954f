"""What libraries keep in memory has bounds."""

import os
import subprocess
import sys

import pytest

from lamina.core import heap

SIZES = """
import sys
import torch
from lamina.core import heap
from lamina.core.machine import resident
torch.set_num_threads(1)
if sys.argv[1] == "bound":
    heap.bound_code()
w, x = torch.ones(256, 256, dtype=torch.bfloat16), torch.ones(999, 256, dtype=torch.bfloat16)
x @ w
before = resident()
for rows in range(100, 500):
    y = torch.nn.functional.linear(x[:rows], w)
    y @ w
    y.T @ x[:rows]
print(resident() - before)
"""


@pytest.mark.slow
def test_many_sizes_of_products_take_little_memory():
    grown = {}
    clean = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
    for way in ("bound", "unbound"):
        done = subprocess.run(
            [sys.executable, "-c", SIZES, way],
            env=clean,
            capture_output=True,
            text=True,
            check=True,
        )
        grown[way] = int(done.stdout)
    assert grown["bound"] < 200 << 20
    if grown["unbound"] < 300 << 20:
        pytest.skip("this processor's products keep no code")
    assert grown["bound"] < grown["unbound"] / 2


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    heap.bound_code()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(heap.CODE)


HOLES = """
import sys, torch
from lamina.core import heap
from lamina.core.machine import resident
if sys.argv[1] == "apart":
    heap.keep_apart(4 << 20)
torch.ones(30 << 20, dtype=torch.uint8)  # the next one of that size comes out of glibc's heap
before = resident()
blocks = [[torch.ones(8 << 20, dtype=torch.uint8), torch.ones(100 << 10)] for _ in range(20)]
for each in blocks:
    each[0] = None
print(resident() - before)
"""


def test_blocks_that_are_kept_apart_leave_no_holes():
    left = {}
    for way in ("apart", "together"):
        command = [sys.executable, "-c", HOLES, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        left[way] = int(done.stdout)
    if left["together"] < 100 << 20:
        pytest.skip("this library's heap has no such holes")
    assert left["apart"] < 30 << 20
