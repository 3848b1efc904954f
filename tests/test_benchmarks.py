"""Every benchmark of the lifecycle runs to its end in its quick form and prints what it promises.

They run on a pico base under the real one's name, so that minutes become seconds; what they
measure on the real base is in benchmarks/results.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.hosts import why_not
from tests.pico import pico_base

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "images": {"matrix", "vs_diffusers", "vs_diffusers_cached", "depth_8_1", "smaller"},
    "stream": {"new_vs_retrain", "kept_vs_retrain", "cost_ratio", "forgetting_vs_naive"},
    "contributors": {"inherited_worse", "min_gain_ratio"},
    "refresh": {"cost_ratio", "exam_ratio"},
    "rebase": {"sibling"},
    "gpu": {"device", "shapes"},
    "methods": {"pays", "sets"},
    "plan": {"configurations", "median_error", "worst_error", "memory_worst_error"},
    "memory": {"worst_error", "configurations", "checkpointing"},
    "train": {"vs_trl_default", "vs_tuned", "vs_peft_loop", "roofline", "memory_vs_trl"},
    "iterate": {"first_s", "again_s", "edited_s", "updated_s", "phases_s"},
    "quantised": {"plain", "nf4", "int8"},
    "large": {"bit_exact", "ratio", "limit_bytes", "peak_bytes", "resident_ends_with"},
    "export_parity": {"targets", "families"},
    "imports": {"cases", "worst_exact_logits"},
    "serve": {"many_vs_one", "bound_share", "http_share", "tokens_s"},
    "serve_load": {"clients", "answers", "lost", "crossed", "rss_growth"},
    "serve_zipf": {"first_new_s", "first_known_s", "gap_s", "rss_mb", "layers_evicted"},
    "ray": {"dp_max_rel", "bytes_per_step", "killed", "lost", "farm", "served"},
    "sharded": {"bit_exact", "ratio", "whole", "shared", "under_limit", "whole_ends_with"},
    "hub": {"pull_over_layer", "transfers", "faults", "corrupt"},
    "share": {"moved_over_layer", "push_vs_oras", "pull_vs_oras", "faults", "corrupt"},
    "squash": {"rel_error", "peak_over_factors", "seconds", "ship8_of_64"},
}


@pytest.fixture
def home(tmp_path):
    """A store with a pico base called as the benchmarks' base is."""
    from benchmarks.common import BASE

    from lamina.api import pull

    pull(str(pico_base(tmp_path / "pico", hidden=32, layers=1)), name=BASE, home=tmp_path / "home")
    return tmp_path / "home"


WITHOUT_DATA = {
    "export_parity", "gpu", "hub", "memory", "ray", "serve", "serve_load", "serve_zipf", "share",
    "sharded",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.alone) if name == "ray" else name for name in KEYS],
)
def test_a_quick_run_prints_its_row(name, home, real_data):
    if name == "ray" and (why := why_not()):
        pytest.skip(why)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            "--quick",
            "--home",
            home,
            *([] if name in WITHOUT_DATA else ["--data", real_data]),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["benchmark"] == name
    assert KEYS[name] <= set(row)
