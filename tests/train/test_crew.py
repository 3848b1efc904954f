"""Workers that take a run's steps together come to what one comes to, and to one another's bits."""

import threading

import pytest
import torch

from lamina.core.errors import TrainInterrupted
from lamina.train import loop
from lamina.train.crew import Alone, add_step, share
from lamina.train.events import EventLog
from tests.train.tiny import job, model, raw, rows, run, stop_after


class Together:
    """A crew of threads."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.given = [None] * size

    def member(self, rank):
        return Member(self, rank)


class Member:
    def __init__(self, together, rank):
        self._all, self.rank, self.size, self.sent = together, rank, together.size, 0
        self.gathered = 0

    def _swap(self, numbers):
        self.sent += numbers.numel() * numbers.itemsize
        self._all.given[self.rank] = numbers.clone()
        self._all.barrier.wait()
        given = list(self._all.given)
        self._all.barrier.wait()
        return given

    def add(self, numbers):
        first, *others = self._swap(numbers)
        numbers.copy_(sum(others, first))

    def follow(self, numbers):
        numbers.copy_(self._swap(numbers)[0])


def in_crew(size, make_job, asked=lambda rank: lambda: False):
    """Every worker's outcome or error, events of worker 0, and the members."""
    together = Together(size)
    members = [together.member(rank) for rank in range(size)]
    found, events = [None] * size, []
    jobs = [make_job(rank) for rank in range(size)]  # transformers loads one model at a time

    def work(rank):
        listen = events.append if rank == 0 else None
        try:
            found[rank] = loop.train(jobs[rank], EventLog(None, listen), asked(rank), members[rank])
        except Exception as error:
            found[rank] = error
            if not isinstance(error, TrainInterrupted):
                together.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for each in found:
        if isinstance(each, Exception) and not isinstance(each, TrainInterrupted):
            raise each
    return found, events, members


WAYS = {
    "fused": {},
    "modules": {"family": "gemma3_text"},
    "in passes": {"pass_tokens": 20},
    "old rows, protected": {"old": rows(5, seed=70), "rehearsal": 0.4, "protect": 0.7},
    "what is known left out": {"known": 0.5, "steps": None, "epochs": 4.0},
    "a time limit": {"max_minutes": 5.0, "steps": None, "epochs": 2.0},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [2, 3])
def test_the_factors_are_those_of_one_worker(tmp_path, size, way):
    family = way.get("family", "llama")
    changes = {key: value for key, value in way.items() if key != "family"}

    def make(name):
        return job(tmp_path / name, on=model(family), **changes)

    alone, _ = run(make("alone"))
    together, events, _ = in_crew(size, lambda rank: make("together"))
    assert len({str(raw(each)) for each in together}) == 1  # to the bit, among themselves
    first = together[0]
    assert first.progress.step == alone.progress.step
    assert first.progress.tokens == alone.progress.tokens
    for name, factors in alone.factors.items():
        ours = first.factors[name]
        torch.testing.assert_close(ours.a_RI, factors.a_RI, rtol=2e-3, atol=2e-5)
        torch.testing.assert_close(ours.b_OR, factors.b_OR, rtol=2e-3, atol=2e-5)
    assert first.progress.best_loss == pytest.approx(alone.progress.best_loss, rel=1e-4)
    assert sum(event["event"] == "step" for event in events) == first.progress.step


def test_a_step_sends_the_gradient_and_little_else(tmp_path):
    _, _, members = in_crew(2, lambda rank: job(tmp_path / "it"))
    parameters = sum(
        f.a_RI.numel() + f.b_OR.numel() for f in run(job(tmp_path / "one"))[0].factors.values()
    )
    steps, rows_at_most = 6, 12
    least = 4 * parameters * (steps + 2)
    assert least <= members[0].sent <= least + (steps + 1) * (4 * (rows_at_most + 1) + 16) + 32
    assert members[0].sent == members[1].sent


@pytest.mark.parametrize("who", [0, 1])
def test_whoever_is_asked_all_stop_and_go_on_together(tmp_path, who):
    whole, _, _ = in_crew(2, lambda rank: job(tmp_path / "whole"))
    for _ in range(2):
        stopped, _, _ = in_crew(
            2,
            lambda rank: job(tmp_path / "parts"),
            lambda rank: stop_after(2) if rank == who else lambda: False,
        )
        assert all(isinstance(each, TrainInterrupted) for each in stopped)
    parts, events, _ = in_crew(2, lambda rank: job(tmp_path / "parts"))
    assert next(e["step"] for e in events if e["event"] == "resumed") == 4
    assert raw(parts[0]) == raw(whole[0])


def test_fewer_workers_may_go_on(tmp_path):
    in_crew(2, lambda rank: job(tmp_path / "parts"), lambda rank: stop_after(3))
    rest, _ = run(job(tmp_path / "parts"))
    whole, _ = run(job(tmp_path / "whole"))
    for name, factors in whole.factors.items():
        torch.testing.assert_close(rest.factors[name].b_OR, factors.b_OR, rtol=2e-3, atol=2e-5)


def test_rows_are_dealt_evenly_and_all():
    lengths = [5, 90, 7, 30, 31, 28, 6]
    dealt = [share(lengths, Together(3).member(rank)) for rank in range(3)]
    assert sorted(place for each in dealt for place in each) == list(range(7))
    tokens = [sum(lengths[i] for i in each) for each in dealt]
    assert max(tokens) == 90  # the longest row alone
    assert share(lengths, Alone()) == list(range(7))
    assert share([4], Together(2).member(1)) == []


def test_one_worker_adds_nothing():
    gradient, loss, worst = torch.ones(3), torch.tensor(2.0), torch.ones(2)
    assert add_step(Alone(), gradient, loss, worst) == (loss, worst)
