"""A file of jobs is read whole, or every fault of it is told."""

import tomllib

import pytest

from lamina.core.errors import UsageError
from lamina.flows.farm import read

WHOLE = """
[defaults]
on = "base"
licence = "MIT"
recipe = { rank = 8, epochs = 2.0 }
[[job]]
name = "one"
data = ["rows.jsonl", "hf:org/name"]
[[job]]
name = "two"
on = "other"
data = ["rows.jsonl"]
recipe = { rank = 4 }
"""


def test_jobs_take_what_they_leave_out_from_the_defaults(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    one, two = read(tomllib.loads(WHOLE), tmp_path, "jobs.toml")
    assert (one.name, one.on, one.licence) == ("one", "base", "MIT")
    assert (two.name, two.on, two.licence) == ("two", "other", "MIT")
    assert (one.recipe.rank, one.recipe.epochs) == (8, 2.0)
    assert (two.recipe.rank, two.recipe.epochs) == (4, 2.0)
    assert one.data == (str(tmp_path / "rows.jsonl"), "hf:org/name")


def test_every_fault_is_told_at_once(tmp_path):
    text = (
        WHOLE + '[[job]]\nname = "one"\n[[job]]\nname = "../x"\non = "b"\ndata = ["r"]\nrnk = 1\n'
    )
    with pytest.raises(UsageError) as caught:
        read(tomllib.loads(text), tmp_path, "jobs.toml")
    said = str(caught.value)
    assert "job 3" in said
    assert "job 4" in said
    assert "rnk" in said


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("", "no file of jobs"),
        ("[[jobs]]\nname = 1", "unknown table 'jobs'"),
        ("job = 3", "no file of jobs"),
        ('[[job]]\nname = "a"\non = "b"\ndata = ["c"]\n' * 2, "several jobs"),
        ('[[job]]\nname = "a b"\non = "b"\ndata = ["c"]\n', "a b"),
    ],
)
def test_what_is_no_file_of_jobs(tmp_path, text, needed):
    with pytest.raises(UsageError, match=needed):
        read(tomllib.loads(text), tmp_path, "jobs.toml")
