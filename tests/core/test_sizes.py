"""Sizes of memory as people write them."""

import pytest

from lamina.core.errors import UsageError
from lamina.core.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("800 MB", 800_000_000),
        ("512MiB", 536_870_912),
        ("3kB", 3000),
        ("3KiB", 3072),
        ("1tb", 10**12),
        ("0.5TiB", 1 << 39),
        ("7B", 7),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


NONSENSE = [
    *("", "2", "GB", "2 G", "2G", "-2GB", "2  GB", " 2GB", "2GB ", "1,5GB", "1e9B", "nan GB"),
    *(".5GB", "2.GB", "0GB", "0.1B", "2GBs", "two GB", "2GB\n", "\uff12GB", "2 Gb/s"),
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense(text):
    with pytest.raises(UsageError, match="no size of memory"):
        parse_size(text)


def test_words():
    sizes = (1_640_000_000, 22_400_000_000, 380_000_000, 9_960_000, 4000, 9_960_000_000)
    assert [*map(size_text, sizes)] == ["1.6 GB", "22 GB", "380 MB", "10 MB", "4 kB", "10 GB"]
