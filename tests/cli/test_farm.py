"""What a farm, or a cluster, is asked amiss is told before anything is begun."""

import pytest

BAD = {
    "nothing there": (None, "cannot be read"),
    "no table": ("= 3", "cannot be read"),
    "no jobs": ("[defaults]\nrank = 3", "no file of jobs"),
    "a job without data": ('[[job]]\nname = "a"\non = "sums"\n', "data"),
    "a recipe amiss": (
        '[[job]]\nname = "a"\non = "sums"\ndata = ["x"]\nrecipe = { rank = -1 }\n', "rank",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_file_of_jobs_amiss(program, tmp_path, bad):
    text, needed = BAD[bad]
    path = tmp_path / "jobs.toml"
    if text is not None:
        path.write_text(text)
    program("farm", path).refused(needed)


def test_a_cluster_without_workers(program, rows):
    options = ("--on", "sums", "--data", rows, "--as", "other", "--ray", "10.0.0.1:6379")
    program("train", *options).refused("--ray needs --workers")
    program("train", *options, "--workers", "0").refused("--workers")
