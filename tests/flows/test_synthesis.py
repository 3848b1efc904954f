"""Rows that a stack writes itself, and private layers that carry them, on a base that talks."""

import json
import random
import shutil

import pytest

from lamina.bases.sample import generate
from lamina.bases.sampling import Sampling
from lamina.core.digest import short
from lamina.core.errors import TrainInterrupted
from lamina.core.report import Silent
from lamina.data.example import Example, Message, ToolCall
from lamina.data.filters import RUN_WORDS, words
from lamina.flows import learn, rehearsal, runs, synthesis, update
from lamina.flows.bases import pull
from lamina.flows.inventory import describe
from lamina.flows.reproduce import reproduce
from lamina.flows.screen import Screen
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import ResolvedLayer, resolve
from lamina.store.layout import Store
from lamina.tokens.mask import encode_all
from tests.flows.world import Said, request, write_rows
from tests.talker import CALL, TOOL, WORDS, call, chat, question, talking_base

pytestmark = pytest.mark.slow  # models are trained or read from disk again and again


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def secrets() -> list[Example]:
    """Private rows."""
    chance = random.Random(7)
    return [chat(question(chance), f"the result is {chance.choice(WORDS)}") for _ in range(40)]


def train(store, data, name, **fields):
    asked = request(data, name, accept_regression="a test", patience=None, **fields)
    return learn.execute(store, learn.prepare(store, asked, Silent()), Silent())


@pytest.fixture(scope="session")
def _world(tmp_path_factory):
    """A base that talks, and `secret`, a private layer over it; never changed."""
    root = tmp_path_factory.mktemp("synthesis")
    store = Store.open(root / "store")
    pull(store, str(talking_base(root / "talker")), "talker", Silent())
    data = write(root / "secret.jsonl", secrets())
    train(store, data, "secret", on="talker", private=True, steps=10, licence="cc-by-4.0")
    return store


@pytest.fixture
def world(_world, tmp_path):
    """A store of one's own with base `talker` and stack `secret`."""
    shutil.copytree(_world.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)


@pytest.fixture(scope="session")
def talker(_world):
    return compile_stack(_world, resolve(_world, "talker"))


def written(compiled, count=4, rows=None, **fields):
    chance = random.Random(3)
    rows = rows or [chat(question(chance)) for _ in range(10)]
    options = {"seed": 1, "reporter": Silent(), "max_question_tokens": 48, "max_new_tokens": 48}
    return synthesis.write_rows(compiled, rows, count, **(options | fields))


# -- answers ---------------------------------------------------------------------------------------


def test_answers_that_are_calls_are_rows_like_those_that_were_read(talker):
    asked = [call(question(random.Random(n))) for n in range(2)]
    found = synthesis.answered(talker, asked, seed=0, reporter=Silent())
    assert found == tuple(asked)  # calls, not text
    assert [Example.from_json(row.to_json()) for row in found] == asked
    ours, theirs = (encode_all(rows, talker.format, max_length=512) for rows in (found, asked))
    assert [row.ids.tolist() for row in ours.rows] == [row.ids.tolist() for row in theirs.rows]


def test_what_stood_for_an_answer_is_not_looked_at(talker):
    one, two = (question(random.Random(n)) for n in range(2))
    before = (*chat(one, "the tool is short").messages, *chat(two).prompt)
    asked = [
        Example(messages=(*before, Message(role="assistant", content=answer)))
        for answer in ("no", "yes")
    ]
    one, two = synthesis.answered(talker, asked, seed=0, reporter=Silent())
    assert one == two
    assert one.messages[:-1] == before


def test_answers_without_an_end_are_dropped(talker):
    asked = [call(question(random.Random(0)))]
    assert synthesis.answered(talker, asked, max_new_tokens=3, seed=0, reporter=Silent()) == ()
    with pytest.raises(TrainInterrupted):
        synthesis.answered(talker, asked, seed=0, reporter=Silent(), stop=lambda: True)


def test_warm_answers_depend_on_the_seed_alone(talker):
    asked = [chat("name the capital"), chat("call the function")]

    def answers(seed):
        return synthesis.answered(
            talker, asked * 4, max_new_tokens=200, seed=seed, temperature=1.0, reporter=Silent()
        )

    assert answers(1) == answers(1)
    assert len({answers(seed) for seed in range(4)}) > 1


def test_generation_stops_where_it_is_told_to(talker):
    prompt = talker.format.prompt_ids([Message(role="user", content="name")])
    more = {"max_new_tokens": 40, "stop_ids": (), "sampling": Sampling(1.0, seed=2)}
    (whole,) = generate(talker.model, [prompt], **more)
    (cut,) = generate(talker.model, [prompt], ended=lambda ids: len(ids) == 7, **more)
    assert cut == whole[:7]


# -- questions -------------------------------------------------------------------------------------


def test_rows_are_new_and_the_same_for_one_seed(talker):
    chance = random.Random(3)
    shown = [chat(question(chance)) for _ in range(10)]
    found = written(talker, rows=shown, forbidden=shown)
    assert 0 < len(found) <= 4
    assert found == written(talker, rows=shown, forbidden=shown)
    assert found != written(talker, rows=shown, forbidden=shown, seed=2)
    assert len({row.messages[0].content for row in found}) == len(found)
    assert all(row.answer.content for row in found)
    assert not {row.messages[0].content for row in found} & {r.messages[0].content for r in shown}
    again = written(talker, rows=shown, forbidden=(*shown, *found))
    assert not set(again) & set(found)


def test_tools_are_kept_and_calls_are_of_them(talker):
    chance = random.Random(3)
    said = Said()
    found = written(talker, rows=[call(question(chance)) for _ in range(10)], reporter=said)
    assert found, said.sentences
    assert all(row.tools == (TOOL,) and row.answer.tool_calls == (CALL,) for row in found)


def test_a_system_prompt_is_kept_only_where_several_rows_share_it(talker):
    chance = random.Random(3)

    def rows(systems):
        return [
            Example(messages=(Message(role="system", content=s), *chat(question(chance)).messages))
            for s in systems
        ]

    own = written(talker, rows=rows([f"the user is number {n}" for n in range(10)]))
    assert own
    assert all(row.messages[0].role == "user" for row in own)
    shared = written(talker, rows=rows(["be short"] * 10))
    assert shared
    assert all(row.messages[0].content == "be short" for row in shared)


def test_plain_text_goes_on_from_a_few_words(talker):
    chance = random.Random(3)
    texts = [Example(text=f"{question(chance)} {question(chance)}") for _ in range(10)]
    found = written(talker, rows=texts, forbidden=texts)
    assert found
    openings = {" ".join(row.text.split()[:2]) for row in texts}
    assert all(" ".join(row.text.split()[:2]) in openings for row in found)
    assert all(row.messages == () and not row.text.isspace() for row in found)


def test_private_text_lends_only_an_opening_that_several_start_with(talker):
    chance = random.Random(3)
    own = [Example(text=f"own{n} start{n} {question(chance)}") for n in range(10)]
    found = written(talker, rows=own, forbidden=own, private=True)
    assert found
    assert not any(row.text.startswith("own") for row in found)
    shared = [Example(text=f"user asks the short {question(chance)}") for _ in range(10)]
    found = written(talker, rows=shared, forbidden=shared, private=True)
    assert found
    assert all(row.text.startswith("user asks the short") for row in found)


def test_nothing_to_go_by_and_nothing_to_say(talker, store):
    said = Said()
    assert synthesis.write_rows(talker, (), 4, seed=0, reporter=said) == ()
    assert said.sentences == ["wrote 0 rows; dropped none"]
    with pytest.raises(TrainInterrupted):
        written(talker, stop=lambda: True)
    chance = random.Random(3)
    said = Said()
    random_model = compile_stack(store, resolve(store, "pico"))
    assert written(random_model, 400, [chat(question(chance))], reporter=said, seed=5) == ()
    rounds = [e for e in said.events if e["text"].startswith("writing")]
    assert len(rounds) == synthesis.DRY_ROUNDS  # it does not go on for 52 rounds


def test_the_screen_says_why_rows_are_dropped():
    screen = Screen([chat("which town has the oldest bridge?")])
    wrong = call("plus").model_copy(update={"tools": ()})
    unknown = ToolCall(name="add", arguments='{"c":1}')
    assert not screen.answer(wrong)
    assert not screen.answer(
        call("x y").model_copy(
            update={"messages": (*call("x y").prompt, chat("", "", tool_calls=(unknown,)).answer)}
        )
    )
    assert not screen.question(chat("ha " * 30))
    assert not screen.question(chat("\N{REPLACEMENT CHARACTER}"))
    assert not screen.question(chat('<tool_call>\n{"name": "add"}'))
    assert not screen.question(call("add(a, b)"))
    assert not screen.question(chat("Which town has the oldest bridge"))
    assert not screen.answer(chat("what", "no no " * 20))
    assert screen.answer(chat("what?"))
    assert not screen.answer(chat("What", "something else"))
    assert screen.summary() == (
        "2 going in circles, 2 no question, 1 calling a function that is not there, "
        "1 calling a function with unknown arguments, 1 unreadable, "
        "1 too close to a forbidden row, 1 said before"
    )


# -- private layers --------------------------------------------------------------------------------


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + RUN_WORDS]) for i in range(len(said) - RUN_WORDS + 1)}


def leaks(store: Store, layer: ResolvedLayer, rows) -> list[str]:
    """The blobs of a layer that hold a question, or eight words in a row, of any of these rows."""
    texts = [message.content for row in rows for message in row.messages]
    pieces = set().union(*map(runs_of_words, texts))
    found = []
    for blob in (*layer.manifest.layers, layer.manifest.config):
        data = store.read(blob.digest)
        held = pieces & runs_of_words(data.decode("utf-8", "replace"))
        if held or any(row.messages[0].content.encode() in data for row in rows):
            found.append(blob.title)
    return found


def test_no_blob_of_a_private_layer_holds_a_row_or_a_piece_of_one(world, tmp_path):
    layer = resolve(world, "secret").layers[-1]
    carried = rehearsal.of_layers(world, [layer])
    assert layer.config.rehearsal == "synthesised"
    assert 0 < len(carried) <= rehearsal.MOST_WRITTEN
    assert layer.manifest.blob(rehearsal.FILE).size <= rehearsal.MOST_BYTES
    assert leaks(world, layer, secrets()) == []
    data = write(tmp_path / "same.jsonl", secrets())
    public = train(world, data, "public", on="talker", steps=2)
    assert rehearsal.FILE in leaks(world, public.stack.layers[-1], secrets())


def test_no_opening_of_a_private_text_travels(world, tmp_path):
    chance = random.Random(9)
    own = [Example(text=f"own{n} start {question(chance)}") for n in range(30)]
    done = train(world, write(tmp_path / "own.jsonl", own), "own", on="talker", private=True)
    carried = rehearsal.of_layers(world, done.stack.layers)
    assert carried
    assert not any(row.text.startswith("own") for row in carried)


def test_no_version_of_a_private_layer_holds_rows_of_any(world, tmp_path):
    chance = random.Random(8)
    fresh = [chat(question(chance), "the tool is short") for _ in range(20)]
    data = write(tmp_path / "fresh.jsonl", fresh)
    asked = update.Request(stack="secret", data=[data], accept_regression="a test")
    new = learn.execute(world, update.prepare(world, asked, Silent()), Silent())
    assert new.config.rehearsal == "synthesised"
    assert leaks(world, new.stack.layers[-1], [*secrets(), *fresh]) == []
    assert rehearsal.of_layers(world, new.stack.layers[-1:])


def test_a_private_layer_says_what_it_carries_under_which_licence(world):
    (layer,) = describe(world, "secret")["layers"]
    assert (layer["rehearsal"], layer["licence"]) == ("synthesised", "cc-by-4.0")


def test_a_private_layer_can_be_reproduced(world):
    found = reproduce(world, "secret", (), Silent(), lambda: False)
    assert found.equal, (short(found.layer), short(found.again))


def test_training_above_a_private_layer_mixes_its_set_in(world, tmp_path):
    beneath = resolve(world, "secret")
    data = write_rows(tmp_path / "more.jsonl", word="fruit")
    run = learn.prepare(world, request(data, "above", on="secret", rehearsal=0.5), Silent())
    assert run.rows(runs.REHEARSAL_ROWS) == rehearsal.of_layers(world, beneath.layers)
    assert set(rehearsal.of_layers(world, beneath.layers[-1:])) <= set(
        run.rows(runs.REHEARSAL_ROWS)
    )


def test_a_private_layer_may_carry_nothing(world, tmp_path):
    data = write(tmp_path / "secret.jsonl", secrets())
    done = train(world, data, "mute", on="talker", private=True, rehearsal_set="none")
    layer = done.stack.layers[-1]
    assert done.config.rehearsal == "none"
    assert layer.manifest.blob(rehearsal.FILE) is None
    assert reproduce(world, "mute", (), Silent(), lambda: False).equal


def test_a_run_stopped_while_rows_are_written_goes_on(world, tmp_path):
    data = write(tmp_path / "secret.jsonl", secrets())
    asked = request(
        data, "secret", on="talker", private=True, steps=10, patience=None, licence="cc-by-4.0",
        again=True, accept_regression="a test",
    )  # fmt: skip
    run = learn.prepare(world, asked, Silent())
    trained = Said()

    def writing() -> bool:
        return any(e.get("text", "").startswith(("answering", "writing")) for e in trained.events)

    with pytest.raises(TrainInterrupted, match="while rows were being written") as caught:
        learn.execute(world, run, trained, writing)
    assert "lamina train --resume last" in caught.value.hint
    again = learn.execute(world, runs.find(world, None), Silent())
    assert again.layer.digest == resolve(world, "secret:v1").layers[-1].digest


@pytest.mark.slow
@pytest.mark.real
def test_the_real_base_asks_and_answers(tmp_path):
    store = Store.open(tmp_path / "store")
    pull(store, "smollm2-135m", "smollm2-135m", Silent())
    compiled = compile_stack(store, resolve(store, "smollm2-135m"))
    shown = [
        chat(f"What is the capital of {land}, and what is it known for?")
        for land in ("France", "Peru", "Kenya", "Japan", "Norway", "Canada")
    ]
    found = written(compiled, 2, shown, forbidden=shown, max_new_tokens=96)
    assert found
    assert found == written(compiled, 2, shown, forbidden=shown, max_new_tokens=96)
    assert all(" " in row.messages[0].content and row.answer.content for row in found)
