"""Lock files: one holder at a time, and whoever waits too long is told so."""

import pytest

from lamina.core.errors import StoreBusyError
from lamina.core.files import locked


def test_a_lock_that_is_held_is_waited_for_and_then_refused(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path):
        with pytest.raises(StoreBusyError, match=r"a\.lock"), locked(path, seconds=0.05):
            pytest.fail("two hold one lock")
        with locked(tmp_path / "b.lock", seconds=0.05):
            pass  # another file, another lock
    with locked(path, seconds=0.05):
        pass  # it was let go


def test_a_block_that_fails_lets_go(tmp_path):
    path = tmp_path / "a.lock"
    with pytest.raises(KeyError), locked(path):
        raise KeyError("whatever")
    with locked(path, seconds=0.05):
        pass
