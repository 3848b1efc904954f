"""Workers get the processors that machines have, not those that a sum of them would have."""

import pytest

from lamina.fleet.crew import threads_of


@pytest.mark.parametrize(
    ("machines", "workers", "threads"),
    [
        ([8], 2, 4), ([8, 2], 2, 4), ([8, 2], 3, 2), ([4, 4], 3, 2), ([3, 3], 4, 1), ([1, 1], 2, 1),
        ([1, 1], 3, 0), ([], 1, 0), ([0, 16], 1, 16),
    ],
)  # fmt: skip
def test_threads(machines, workers, threads):
    assert threads_of(machines, workers) == threads
