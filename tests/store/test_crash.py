"""kill -9 at every write: nothing half-written is ever seen, and doing it again completes."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # kills at every write

HERE = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(("start", "least"), [("used", 100), ("new", 25)])
def test_kill_at_every_write(tmp_path, start, least):
    memory = Path("/dev/shm")  # the page cache survives SIGKILL, so a RAM disk proves as much
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.store.crash", f"{folder}/work", start],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == [], done.stderr
    assert report["deaths"] >= least
