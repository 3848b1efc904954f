"""Replicas without Ray: real engines over a real store behind a place where they can die."""

import asyncio
import contextlib
import json
import pickle
import queue
import threading
import time

import pytest

from lamina.bases.sampling import Sampling
from lamina.core.errors import BusyError, FleetError, UsageError
from lamina.fleet.replicas import Size
from lamina.flows.crossing import event_of, plain, plain_event
from lamina.flows.elsewhere import error_of, text_of, told
from lamina.flows.hosting import Host, with_limits
from lamina.flows.replica import Holder, holder
from lamina.flows.replicas import TRIES, Spread
from lamina.serve.engine import Limits
from lamina.serve.request import Finished, Request, Token
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.serve.bases import VOCAB, tokens
from tests.stacks import BASE, new_store, put_stack

DRAW = Sampling(temperature=1.2, top_p=0.95, seed=3)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["red", "green"]}},
    "required": ["a", "b"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = new_store(tmp_path_factory.mktemp("replicas") / "home", hidden=128, vocab=VOCAB)
    put_stack(made, "one", 1)
    put_stack(made, "two", 2)
    return made


def given(home, **more):
    base = resolve(home, BASE).config.base
    return told(home) | {"limits": {"cache_tokens": 8192}, "bases": [base]} | more


class Place:
    """A `fleet.replicas.Group` in one process. `dies`: events after which each next one asked does
    so; what crosses goes through pickle, as it does with Ray."""

    def __init__(self, store, dies=()):
        self.holders = [Holder(given(store)), Holder(given(store))]
        self.dies, self.asked, self.closed = list(dies), [], 0
        self.size = Size(2, 1, 0)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    @property
    def reports(self):
        return [each.report() for each in self.holders]

    async def ask(self, key, asked):
        asked = pickle.loads(pickle.dumps(asked))
        self.asked.append((key, asked))
        left = self.dies.pop(0) if self.dies else None
        answers = self.holders[len(self.asked) % 2].answers(asked)
        async with contextlib.aclosing(answers):
            try:
                async for pieces in answers:
                    if left is not None and left <= len(pieces):
                        yield pieces[:left]
                        raise FleetError("a replica failed: killed")
                    left = None if left is None else left - len(pieces)
                    yield pickle.loads(pickle.dumps(pieces))
            except (GeneratorExit, asyncio.CancelledError):
                self.closed += 1
                raise

    def engine(self, store):
        identity = resolve(store, BASE).config.base
        said = self.holders[0].prepare(identity)
        return Spread(self, store.bases()[BASE].digest, identity, **said)


@pytest.fixture(scope="module")
def host(store):
    """What answers without replicas."""
    return Host(store, with_limits(Limits(cache_tokens=8192)))


class Heard:
    def __init__(self):
        self.events, self._ended = [], queue.Queue()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Finished):
            self._ended.put(event)

    def end(self):
        return self._ended.get(timeout=60)

    @property
    def ids(self):
        return [event.id for event in self.events if isinstance(event, Token)]


def ask(engine, store, stack="two", new=60, prompt=12, **more):
    heard = Heard()
    request = Request(resolve(store, stack), tuple(tokens(1, prompt)), new, **more)
    heard.ticket = engine.submit(request, heard)
    return heard


def alone(host, store, **more):
    heard = ask(host.base_of(resolve(store, BASE)).engine, store, **more)
    heard.end()
    return heard


def test_what_crosses_comes_back_as_it_was():
    for event in (
        Token(7),
        Token(7, -0.5, ((7, -0.5), (9, -1.5))),
        Finished("length", 3, 2, 9),
        Finished("error", 3, 0, 0, UsageError("no", faults=["a", "b"], hint="do")),
    ):
        came = event_of(pickle.loads(pickle.dumps(plain_event(event))))
        assert repr(came) == repr(event)
    error = error_of(text_of(BusyError("full", hint="wait")))
    assert (type(error), error.message, error.hint) == (BusyError, "full", "wait")


@pytest.mark.parametrize("sampling", [Sampling(), DRAW])
@pytest.mark.parametrize("dies", [(), (0,), (1, 17, 0), (59,)])
def test_an_answer_is_the_same_whoever_dies(store, host, sampling, dies):
    place = Place(store, dies)
    heard = ask(place.engine(store), store, sampling=sampling, logprobs=2)
    end = heard.end()
    expected = alone(host, store, sampling=sampling, logprobs=2)
    assert [repr(e) for e in heard.events[:-1]] == [repr(e) for e in expected.events[:-1]]
    assert (end.reason, end.new_tokens, end.prompt_tokens) == ("length", 60, 12)
    assert len(place.asked) == len(dies) + 1
    assert {key for key, _ in place.asked} == {resolve(store, "two").digest}


def test_tokens_travel_together(store):
    asked = plain(Request(resolve(store, "two"), tuple(tokens(1, 12)), 300))

    async def messages():
        return [len(pieces) async for pieces in Holder(given(store)).answers(asked)]

    found = asyncio.run(messages())
    assert sum(found) == 301
    assert found[0] == 1  # the first one waits for nobody
    assert len(found) < 150


def test_a_grammar_holds_on_both_sides_of_a_death(store, host):
    grammars = host.base_of(resolve(store, BASE)).grammars
    stops = host.base_of(resolve(store, BASE)).format.stop_ids
    more = {"sampling": DRAW, "stop_ids": stops, "new": 120}
    expected = alone(host, store, constraint=grammars.schema(SCHEMA), **more)
    for dies in ((), (1, 4)):
        place = Place(store, dies)
        heard = ask(place.engine(store), store, constraint=grammars.schema(SCHEMA), **more)
        assert heard.end().reason == "stop"
        assert heard.ids == expected.ids
        assert len(place.asked) == len(dies) + 1
    text = host.base_of(resolve(store, BASE)).format.tokenizer.decode(heard.ids)
    assert json.loads(text)["b"] in ("red", "green")


def test_a_death_between_the_last_token_and_the_end(store, host):
    """What is whole is not asked again."""

    class Mute(Place):
        async def ask(self, key, asked):
            async for pieces in super().ask(key, asked):
                yield [piece for piece in pieces if isinstance(piece[0], int)]
            raise FleetError("a replica failed: killed")

    place = Mute(store)
    heard = ask(place.engine(store), store, new=5)
    assert heard.end().reason == "length"
    assert heard.ids == alone(host, store, new=5).ids
    assert len(place.asked) == 1


def test_it_is_given_up_at_last(store):
    place = Place(store, [0] * (TRIES + 2))
    heard = ask(place.engine(store), store)
    end = heard.end()
    assert (end.reason, end.new_tokens, heard.ids) == ("error", 0, [])
    assert isinstance(end.error, FleetError)
    assert "killed" in str(end.error)
    assert len(place.asked) == TRIES + 1


def test_who_leaves_is_gone_from_the_replica_too(store):
    place = Place(store)
    engine = place.engine(store)
    heard = ask(engine, store, new=2000)
    while not heard.ids:
        time.sleep(0.005)
    heard.ticket.cancel()
    assert heard.end().reason == "cancelled"
    end = time.monotonic() + 20
    while any(r["running"] for report in place.reports for r in report.values()):
        assert time.monotonic() < end
        time.sleep(0.01)
    at_once = ask(engine, store)
    at_once.ticket.cancel()
    assert at_once.end().reason == "cancelled"
    assert sum(isinstance(event, Finished) for event in at_once.events) == 1
    at_once.ticket.cancel()  # any number of times


def test_draining(store):
    engine = Place(store).engine(store)
    heard = [ask(engine, store, new=40) for _ in range(4)]
    assert engine.drain(60)
    assert [each.end().reason for each in heard] == ["length"] * 4
    with pytest.raises(BusyError, match="shut down"):
        ask(engine, store)
    engine = Place(store).engine(store)
    heard = ask(engine, store, new=2000)
    assert not engine.drain(0.1)
    assert heard.end().reason == "cancelled"


def test_what_cannot_be_answered_is_refused_at_once(store):
    place = Place(store)
    engine = place.engine(store)
    with pytest.raises(UsageError, match="together at most"):
        ask(engine, store, new=100_000)
    with pytest.raises(UsageError, match="know grammars alone"):
        ask(engine, store, constraint=object())
    assert not place.asked


def test_stats_are_sums(store):
    place = Place(store)
    engine = place.engine(store)
    for _ in range(2):
        assert ask(engine, store, new=10).end().reason == "length"
    stats = engine.stats()
    assert (stats.replicas, stats.tokens_out, stats.tokens_in) == (2, 20, 24)
    assert stats.blocks == 2 * 8192 // 32
    assert stats.layers_loaded == 4  # the place knows no keys
    assert stats.running == stats.waiting == 0


def test_what_a_replica_cannot_do_is_said_in_a_line(store, tmp_path):
    with pytest.raises(RuntimeError) as told:
        holder(given(store, store=str(tmp_path / "elsewhere")))
    assert "does not see" in error_of(str(told.value)).message
    with pytest.raises(RuntimeError) as told:
        holder(given(store, version="0"))
    error = error_of(str(told.value))
    assert isinstance(error, UsageError)
    assert "the same version" in error.hint
    unknown = Holder(given(store)).prepare("sha256:" + "0" * 64)
    assert "fault" in unknown


def test_a_layer_that_is_gone_fails_its_own_request(store, tmp_path):
    other = new_store(tmp_path / "home", hidden=128, vocab=VOCAB)
    put_stack(other, "two", 2)
    place = Place(other)
    engine = place.engine(other)
    request = Request(resolve(other, "two"), tuple(tokens(1, 5)), 5)
    for blob in request.stack.layers[1].manifest.layers:
        if blob.mediaType.endswith("safetensors"):
            Store.open(other.root).path(blob.digest).unlink()
    heard = Heard()
    engine.submit(request, heard)
    end = heard.end()
    assert end.reason == "error"
    assert type(end.error).__name__ == "MissingBlobError"
    assert ask(engine, other, stack=BASE, new=3).end().reason == "length"
    assert plain(request)["grammar"] is None
