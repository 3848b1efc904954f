"""The engine: every answer is what its stack says alone, whatever goes on beside it."""

import queue
import threading
import time

import numpy as np
import pytest

from lamina.bases.sampling import Sampling
from lamina.core.errors import BusyError, LaminaError, UsageError
from lamina.core.names import Name
from lamina.serve.batch import BLOCK
from lamina.serve.engine import Limits
from lamina.serve.open import open_engine
from lamina.serve.request import Finished, Request, Token
from lamina.stack.resolve import resolve
from lamina.store.refs import ANYTHING
from tests.serve.bases import VOCAB, tokens
from tests.stacks import BASE, new_store, put_stack

DEPTHS = {"one": 1, "two": 2, "five": 5}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    made = new_store(tmp_path_factory.mktemp("engine") / "home", hidden=128, vocab=VOCAB)
    for name, depth in DEPTHS.items():
        put_stack(made, name, depth)
    return made


@pytest.fixture
def opened(store):
    """Makes engines over the store, and ends them."""
    made = []

    def make(**limits):
        engine = open_engine(store, store.bases()[BASE], limits=Limits(**limits))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.drain(0)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.events, self._queue, self.times = [], queue.Queue(), []

    def __call__(self, event):
        self.events.append(event)
        self._queue.put(event)

    def first(self):
        return self._queue.get(timeout=60)

    def wait(self):
        while True:
            event = self._queue.get(timeout=60)
            if isinstance(event, Finished):
                return event

    @property
    def ids(self):
        return [event.id for event in self.events if isinstance(event, Token)]


def ask(engine, store, stack, prompt, new=20, **more):
    heard = Heard()
    request = Request(resolve(store, stack), tuple(prompt), new, **more)
    heard.ticket = engine.submit(request, heard)
    return heard


def alone(opened, store, stack, prompt, new=20, **more):
    """What an engine of its own says."""
    engine = opened()
    heard = ask(engine, store, stack, prompt, new, **more)
    heard.wait()
    engine.drain(5)
    return heard.ids


def test_answers_in_a_crowd_are_those_given_alone(opened, store):
    names = ["one", "two", "five", BASE] * 5
    asked = [(name, tokens(i, 5 + 9 * i)) for i, name in enumerate(names)]
    expected = [alone(opened, store, *each) for each in asked]
    engine = opened(pass_tokens=48)
    heard = [ask(engine, store, *each) for each in asked]
    for one in heard:
        assert one.wait().reason == "length"
    assert [one.ids for one in heard] == expected
    assert len({tuple(ids) for ids in expected}) > len(expected) // 2  # they do differ


def test_stacks_say_different_things(opened, store):
    engine = opened()
    heard = [ask(engine, store, name, tokens(0, 12)) for name in (*DEPTHS, BASE)]
    for one in heard:
        one.wait()
    assert len({tuple(one.ids) for one in heard}) == 4


def test_a_second_look_at_a_prompt_is_spared_and_says_the_same(opened, store):
    engine = opened()
    prompt = tokens(3, 3 * BLOCK + 7)
    first = ask(engine, store, "two", prompt)
    assert first.wait().cached_tokens == 0
    second = ask(engine, store, "two", prompt)
    assert second.wait().cached_tokens == 3 * BLOCK
    other = ask(engine, store, "one", prompt)
    assert other.wait().cached_tokens == 0
    assert first.ids == second.ids != other.ids
    assert engine.stats().tokens_cached == 3 * BLOCK


def test_answers_go_on_where_blocks_run_out(opened, store):
    asked = [("two", tokens(i, 30 + i)) for i in range(6)]
    expected = [alone(opened, store, *each, 100) for each in asked]
    engine = opened(cache_tokens=12 * BLOCK)  # two and a half answers
    heard = [ask(engine, store, *each, 100) for each in asked]
    for one in heard:
        assert one.wait().new_tokens == 100
    assert [one.ids for one in heard] == expected
    stats = engine.stats()
    assert stats.running == stats.waiting == 0
    assert engine._cache.available == 12


def test_a_seed_decides_whatever_the_batch(opened, store):
    draw = Sampling(temperature=1.5, top_p=0.95, seed=7)
    expected = alone(opened, store, "one", tokens(0, 10), sampling=draw)
    engine = opened()
    crowd = [ask(engine, store, "two", tokens(i, 40)) for i in range(5)]
    again = ask(engine, store, "one", tokens(0, 10), sampling=draw)
    other = ask(engine, store, "one", tokens(0, 10), sampling=Sampling(temperature=1.5, seed=8))
    for one in (*crowd, again, other):
        one.wait()
    assert again.ids == expected != other.ids


@pytest.mark.parametrize("said", [1, 7, 19])
@pytest.mark.parametrize(
    "draw",
    [
        Sampling(),
        Sampling(temperature=1.2, top_p=0.95, seed=3),
        Sampling(temperature=1.0, frequency_penalty=0.7, repetition_penalty=1.3, seed=4),
    ],
)
def test_an_answer_goes_on_where_another_engine_was(opened, store, draw, said):
    prompt = tokens(2, 40)
    whole = alone(opened, store, "two", prompt, sampling=draw)
    engine = opened()
    rest = ask(engine, store, "two", prompt, sampling=draw, said=tuple(whole[:said]))
    end = rest.wait()
    assert [*whole[:said], *rest.ids] == whole
    assert (end.reason, end.new_tokens, end.prompt_tokens) == ("length", 20, 40)
    assert engine.stats().tokens_out == 20 - said
    with pytest.raises(UsageError, match="no tokens"):
        ask(engine, store, "two", prompt, said=tuple(whole))


def test_a_stop_token_ends_and_is_not_told(opened, store):
    ids = alone(opened, store, "one", tokens(0, 10))
    stop = ids[6]
    heard = ask(opened(), store, "one", tokens(0, 10), stop_ids=(stop,))
    ended = heard.wait()
    assert ended.reason == "stop"
    assert heard.ids == ids[: ids.index(stop)]
    assert ended.new_tokens == len(heard.ids)


def test_logprobs_are_those_of_the_logits(opened, store):
    heard = ask(opened(), store, "one", tokens(0, 10), 3, logprobs=5)
    heard.wait()
    for event in heard.events[:-1]:
        assert len(event.top) == 5
        assert event.top[0] == (event.id, pytest.approx(event.logprob))
        assert sum(np.exp(p) for _, p in event.top) <= 1.0001
    silent = ask(opened(), store, "one", tokens(0, 10), 3, logprobs=0)
    silent.wait()
    assert silent.events[0] == Token(heard.events[0].id, heard.events[0].logprob, ())


class OnlyEven:
    """Even tokens may come, and `count` of them are enough."""

    def __init__(self, count):
        self.left, self.pushed = count, []

    def fill(self, mask_W):
        mask_W[:] = np.int32(0x55555555)

    def push(self, token):
        self.pushed.append(token)
        self.left -= 1

    @property
    def ended(self):
        return self.left <= 0


def test_a_constraint_decides_what_may_come(opened, store):
    only = OnlyEven(7)
    heard = ask(opened(), store, "one", tokens(0, 10), constraint=only)
    assert heard.wait().reason == "stop"
    assert heard.ids == only.pushed
    assert len(heard.ids) == 7
    assert all(token % 2 == 0 for token in heard.ids)


class Broken(OnlyEven):
    def push(self, token):
        raise UsageError("no such token")


def test_a_faulty_constraint_ends_its_own_answer_alone(opened, store):
    engine = opened()
    fine = ask(engine, store, "one", tokens(0, 10), 40)
    bad = ask(engine, store, "one", tokens(1, 10), constraint=Broken(3))
    ended = bad.wait()
    assert ended.reason == "error"
    assert "no such token" in str(ended.error)
    assert fine.wait().reason == "length"


def test_a_faulty_listener_harms_nobody_else(opened, store):
    engine = opened()

    def deaf(event):
        raise RuntimeError("not listening")

    engine.submit(Request(resolve(store, "one"), tuple(tokens(0, 9)), 50), deaf)
    assert ask(engine, store, "one", tokens(1, 9), 30).wait().reason == "length"
    assert engine._cache.available == engine._cache.count


def test_cancelling_frees_at_once(opened, store):
    engine = opened()
    heard = ask(engine, store, "two", tokens(0, 200), 1500)
    heard.first()
    heard.ticket.cancel()
    ended = heard.wait()
    assert ended.reason == "cancelled"
    assert 0 < ended.new_tokens < 1500
    assert engine._cache.available == engine._cache.count
    assert engine.stats().running == 0
    heard.ticket.cancel()  # again, and nothing happens
    time.sleep(0.05)
    assert sum(isinstance(event, Finished) for event in heard.events) == 1


def test_who_leaves_while_the_prompt_is_read_frees_it_and_spoils_nothing(opened, store):
    prompt = tokens(5, 1500)
    expected = alone(opened, store, "two", prompt)
    engine = opened(pass_tokens=2)
    heard = ask(engine, store, "two", prompt)
    while engine.stats().tokens_in < 3 * BLOCK:
        time.sleep(0.001)
    heard.ticket.cancel()
    ended = heard.wait()
    assert (ended.reason, ended.new_tokens) == ("cancelled", 0)
    assert engine.stats().tokens_in < len(prompt)
    assert engine._cache.available == engine._cache.count
    again = ask(engine, store, "two", prompt)
    assert 3 * BLOCK <= again.wait().cached_tokens < len(prompt) - BLOCK
    assert again.ids == expected


def test_who_leaves_while_its_layers_are_read(opened, store):
    """Its layers may come later: they are nobody's, and the next one finds or loads them."""
    engine = opened(layer_bytes=1)
    expected = ask(engine, store, "five", tokens(0, 9))
    expected.wait()
    for _ in range(20):
        left = ask(engine, store, "five", tokens(1, 9))
        left.ticket.cancel()
        assert left.wait().reason in ("cancelled", "length")
    again = ask(engine, store, "five", tokens(0, 9))
    assert again.wait().reason == "length"
    assert again.ids == expected.ids
    assert engine._cache.available == engine._cache.count


def test_a_name_that_moves_finishes_on_the_old_stack(opened, store, tmp_path):
    expected = alone(opened, store, "two", tokens(0, 10), 60)
    engine = opened()
    store.tag(Name("moving"), resolve(store, "two").descriptor, expected=ANYTHING)
    heard = ask(engine, store, "moving", tokens(0, 10), 60)
    heard.first()
    store.tag(Name("moving"), resolve(store, "five").descriptor, expected=ANYTHING)
    after = ask(engine, store, "moving", tokens(0, 10), 60)
    heard.wait(), after.wait()
    assert heard.ids == expected != after.ids
    store.untag(Name("moving"))


def test_layers_that_nobody_uses_are_given_up_over_the_budget(opened, store):
    engine = opened(layer_bytes=1)
    first = ask(engine, store, "five", tokens(0, 10))
    first.wait()
    ask(engine, store, "one", tokens(0, 10)).wait()
    stats = engine.stats()
    assert stats.layers_evicted >= 5
    assert stats.layer_bytes == 0
    again = ask(engine, store, "five", tokens(0, 10))
    again.wait()
    assert again.ids == first.ids


def test_a_layer_that_is_gone_is_an_error_of_its_own_request(tmp_path, opened):
    store = new_store(tmp_path / "home", hidden=128, vocab=VOCAB)
    layers = put_stack(store, "gone", 1)
    put_stack(store, "there", 1)
    stack = resolve(store, "gone")
    engine = open_engine(store, store.bases()[BASE])
    weights = store.manifest(layers[0].layer).blob("adapter_model.safetensors")
    store.path(weights.digest).unlink()
    heard = Heard()
    engine.submit(Request(stack, (7, 8, 9), 5), heard)
    ended = heard.wait()
    assert ended.reason == "error"
    assert isinstance(ended.error, LaminaError)
    assert ask(engine, store, BASE, tokens(0, 5)).wait().reason == "length"
    assert engine.drain(5)


@pytest.mark.parametrize(
    ("prompt", "new", "said"),
    [
        ((), 5, "empty prompt"),
        ((5,), 0, "no tokens"),
        ((5, VOCAB), 5, "token ids"),
        ((5, -1), 5, "token ids"),
        ((5,) * 2000, 100, "together at most 2048"),
    ],
)
def test_what_cannot_be_answered_is_refused(opened, store, prompt, new, said):
    with pytest.raises(UsageError, match=said):
        opened().submit(Request(resolve(store, "one"), prompt, new), Heard())


def test_a_stack_over_another_base_is_refused(opened, store, tmp_path):
    other = new_store(tmp_path / "home", hidden=64, vocab=VOCAB)
    with pytest.raises(UsageError, match="another base"):
        opened().submit(Request(resolve(other, BASE), (5,), 5), Heard())


def test_a_full_queue_is_said_so(opened, store):
    engine = opened(rows=1, waiting=2)
    first = ask(engine, store, "one", tokens(0, 5), 1000)
    first.first()
    waiting = [ask(engine, store, "one", tokens(i, 5)) for i in range(2)]
    with pytest.raises(BusyError, match="waiting already"):
        ask(engine, store, "one", tokens(0, 5))
    first.ticket.cancel()
    for one in waiting:
        assert one.wait().reason == "length"


def test_draining_finishes_what_is_there(opened, store):
    engine = opened()
    heard = [ask(engine, store, "one", tokens(i, 20), 30) for i in range(3)]
    assert engine.drain(60)
    assert [one.wait().reason for one in heard] == ["length"] * 3
    with pytest.raises(BusyError, match="shut down"):
        ask(engine, store, "one", tokens(0, 5))


def test_draining_cuts_off_what_takes_too_long(opened, store):
    engine = opened()
    heard = ask(engine, store, "one", tokens(0, 20), 2000)
    heard.first()
    assert not engine.drain(0.05)
    assert heard.wait().reason == "cancelled"


def test_many_threads_ask_and_give_up(opened, store):
    expected = {name: alone(opened, store, name, tokens(0, 20), 12) for name in DEPTHS}
    engine = opened(cache_tokens=20 * BLOCK, rows=6, pass_tokens=32)
    faults = []

    def client(number):
        for turn in range(6):
            name = list(DEPTHS)[(number + turn) % 3]
            heard = ask(engine, store, name, tokens(0, 20), 12)
            if (number + turn) % 4 == 0:
                heard.ticket.cancel()
                if heard.wait().reason not in ("cancelled", "length"):
                    faults.append("ended otherwise")
            elif heard.wait().reason != "length" or heard.ids != expected[name]:
                faults.append(f"{name} said something else")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert engine._cache.available == 20
    assert engine.stats().running == engine.stats().waiting == 0


def test_the_same_layers_twice_are_in_memory_once(opened, store):
    engine = opened()
    ask(engine, store, "five", tokens(0, 5)).wait()
    before = engine.stats()
    ask(engine, store, "five", tokens(1, 5)).wait()
    assert engine.stats().layer_bytes == before.layer_bytes
    assert before.layers_loaded == 5


def test_what_an_engine_says_of_its_base(opened):
    engine = opened()
    assert (engine.vocabulary, engine.context) == (VOCAB, 2048)
    assert opened(cache_tokens=8 * BLOCK).context == 8 * BLOCK  # no more fits into the cache
