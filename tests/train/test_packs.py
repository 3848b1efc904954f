"""What a run computed below its first trained layer is there for the next, or is computed again."""

import os
from dataclasses import replace

import pytest
import torch

from lamina.bases import families
from lamina.bases.header import read_entries
from lamina.train import packs, prefix
from lamina.train.job import Shared
from lamina.train.packs import Packs
from lamina.train.prefix import Prefixes
from tests.train.test_fused import factors_for
from tests.train.test_prefix import LONG, counts, ids_of, made, three, upper
from tests.train.tiny import job, raw, rows, run


def sharing(work, root, key="one"):
    return replace(work, shared=Shared(root / "packs", key))


def files(root):
    return sorted((root / "packs").glob("*/*"))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_next_run_computes_nothing_anew(tmp_path, family):
    on = three(family)
    first, before = run(sharing(upper(tmp_path / "first", on), tmp_path))
    assert counts(before)["computed"] == 16
    second, after = run(sharing(upper(tmp_path / "second", on), tmp_path))
    assert counts(after)["computed"] == 0
    assert counts(after)["left"] == 16
    assert raw(second) == raw(first)
    assert len(files(tmp_path)) == 1  # nothing new, so nothing is left


def test_only_new_rows_are_left_again(tmp_path):
    on = three()
    run(sharing(upper(tmp_path / "first", on), tmp_path))
    more = {"rows": rows() + rows(3, seed=50)}
    _, after = run(sharing(upper(tmp_path / "second", on, **more), tmp_path))
    assert (counts(after)["computed"], counts(after)["left"]) == (3, 16)
    assert sorted(len(read_entries(path)) for path in files(tmp_path)) == [3, 16]


def test_what_is_not_the_same_is_not_taken(tmp_path):
    """Another key, another first layer, other factors of a warm start below it."""
    on = three()
    start = factors_for(families.linears(on))
    warm = LONG | {"on": on, "above": 0.7, "start": start}
    run(sharing(job(tmp_path / "a", **warm), tmp_path))
    _, same = run(sharing(job(tmp_path / "b", **warm), tmp_path))
    assert counts(same)["computed"] == 0
    lowest = next(name for name in start if families.layer_of(name) == 0)
    moved = replace(start[lowest], b_OR=start[lowest].b_OR + 1e-3)
    colder = start | {lowest: moved}
    others = {
        "key": sharing(job(tmp_path / "c", **warm), tmp_path, "two"),
        "first": sharing(job(tmp_path / "d", **warm | {"above": 0.4}), tmp_path),
        "still": sharing(job(tmp_path / "e", **warm | {"start": colder}), tmp_path),
    }
    for name, work in others.items():
        _, events = run(work)
        assert (counts(events)["computed"], counts(events)["left"]) == (16, 0), name
    highest = next(name for name in start if families.layer_of(name) == 2)
    moved = replace(start[highest], b_OR=start[highest].b_OR + 1e-3)
    work = job(tmp_path / "f", **warm | {"start": start | {highest: moved}})
    _, events = run(sharing(work, tmp_path))
    assert counts(events)["computed"] == 0  # what is trained says nothing of what lies below


@pytest.mark.parametrize("damage", ["a bit", "a cut", "the header", "gone"])
def test_damage_is_computed_again(tmp_path, damage):
    on = three()
    first, _ = run(sharing(upper(tmp_path / "first", on), tmp_path))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "a bit":
        data[-5] ^= 4
    elif damage == "a cut":
        del data[-100:]
    elif damage == "the header":
        data[8] ^= 1
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    second, after = run(sharing(upper(tmp_path / "second", on), tmp_path))
    assert counts(after)["computed"] == (1 if damage == "a bit" else 16)
    assert raw(second) == raw(first)


def left(root, key, some, most=1 << 20):
    found = Prefixes(root, packs=Packs(root / "packs", key, most))
    found.of(some, made)
    found.leave()


def test_the_oldest_give_way(tmp_path):
    some = ids_of(9)
    size = sum(len(ids_T) for ids_T in some) * 32
    for age, key in enumerate("abc"):
        left(tmp_path, key, some)
        (path,) = (tmp_path / "packs" / key).iterdir()
        os.utime(path, (age, age))
    Packs(tmp_path / "packs", "a")  # used: it is not the oldest any more
    left(tmp_path, "d", some, most=3 * path.stat().st_size)
    assert sorted(path.parent.name for path in files(tmp_path)) == ["a", "c", "d"]
    assert not (tmp_path / "packs" / "b").exists()
    left(tmp_path, "e", some, most=size // 2)  # as many rows as there is room for
    (path,) = files(tmp_path)
    assert path.parent.name == "e"
    assert 0 < len(read_entries(path)) < 9
    assert path.stat().st_size < size


def test_a_folder_that_takes_nothing_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "packs").write_text("a file where the folder should be")
    left(tmp_path, "a", ids_of(3))
    (tmp_path / "packs").unlink()
    monkeypatch.setattr(packs.shutil, "disk_usage", lambda _: type("U", (), {"free": 0}))
    left(tmp_path, "a", ids_of(3))
    assert files(tmp_path) == []


def test_what_came_from_the_file_is_left_too(tmp_path):
    some = ids_of(6)
    found = Prefixes(tmp_path, memory=300, packs=Packs(tmp_path / "packs", "a"))
    found.of(some, made)
    assert found.counts.file > 0
    found.leave()
    again = Packs(tmp_path / "packs", "a")
    for ids_T, expected in zip(some, made(some), strict=True):
        key = prefix.key_of(ids_T).hex()
        assert key in again
        assert torch.equal(again.look_up(key), expected)


def test_nothing_is_left_without_a_place_for_it(tmp_path):
    run(upper(tmp_path / "first", three()))
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["state.safetensors"]
