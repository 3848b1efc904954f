"""`lamina arena`: a stack beside another, a real server, and endpoints that misbehave."""

import http.server
import json
import re
import threading

import pytest

pytestmark = pytest.mark.slow  # whole verbs, again and again

QUESTIONS = 6


@pytest.fixture
def questions(tmp_path):
    """Rows whose answers are short texts: the scorer `exact` fits."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is {n} plus 2?"},
                {"role": "assistant", "content": str(n + 2)},
            ]
        }
        for n in range(QUESTIONS)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Endpoint:
    """An OpenAI-compatible endpoint of our own: `answer` gives (status, body) for each request."""

    def __init__(self, answer, models=("only",)):
        self.seen = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"object": "list", "data": [{"id": name} for name in models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.seen.append((body, self.headers.get("authorization")))
                self.reply(*answer(body, len(outer.seen)))

            def reply(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def completion(text, calls=None, usage=(10, 5)):
    turn = {"role": "assistant", "content": text}
    if calls:
        turn["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": given}}
            for i, (name, given) in enumerate(calls)
        ]
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else {}
    counts |= {"total_tokens": sum(usage)} if usage else {}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "only",
        "choices": [{"index": 0, "finish_reason": "stop", "message": turn}],
        **({"usage": counts} if usage else {}),
    }


def right(body, _):
    """The right answer to every question."""
    return completion(str(int(re.search(r"\d+", body["messages"][-1]["content"])[0]) + 2))


@pytest.fixture
def endpoint():
    opened = []

    def open_one(answer, **options):
        opened.append(Endpoint(answer, **options))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_a_stack_against_itself_is_not_told_apart(shared, questions):
    found = shared("arena", "sums", "--against", "sums", "--exam", questions, "--json").done().json
    (compared,) = found["comparisons"]
    assert compared["delta"] == 0
    assert compared["n"] == QUESTIONS
    ours, theirs = found["contestants"]
    assert ours["host"] is None
    assert ours["seconds"]["p95"] >= ours["seconds"]["p50"] > 0
    assert ours["tokens_in"] == theirs["tokens_in"] > 0
    assert ours["cost_per_thousand"] is None


def test_an_endpoint_that_knows_everything_wins(shared, questions, endpoint):
    rival = endpoint(right)
    prices = ("--price-in", 1, "--price-out", 2, "--price-hour", 36)
    options = ("--against", rival.url, "--exam", questions, *prices)
    found = shared("arena", "sums", *options, "--json", OPENAI_API_KEY="secret").done()
    assert f"{QUESTIONS} questions are sent to 127.0.0.1" in found.err
    ours, theirs = found.json["contestants"]
    assert theirs["contestant"] == "only at 127.0.0.1"
    (exam,) = found.json["exams"]
    assert exam["scores"][1]["value"] == 1.0
    assert found.json["comparisons"][0]["delta"] == exam["scores"][0]["value"] - 1.0
    assert theirs["cost_per_thousand"] == pytest.approx(1000 * (10 * 1 + 5 * 2) / 1e6)
    expected = 1000 * 36 * ours["seconds"]["mean"] / 3600
    assert ours["cost_per_thousand"] == pytest.approx(expected)
    assert {key for _, key in rival.seen} == {"Bearer secret"}
    body = rival.seen[0][0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("only", 0, 48)
    told = shared("arena", "sums", *options).done().out
    assert "only at 127.0.0.1: 100.0%" in told
    assert "sums is worse" in told


def test_the_server_of_a_stack_answers_as_the_stack(made_server, shared, questions):
    options = ("--against", f"{made_server}/v1", "--model", "sums", "--exam", questions)
    found = shared("arena", "sums", *options, "--at-once", 3, "--json").done().json
    ours, theirs = found["contestants"]
    assert ours["tokens_out"] == theirs["tokens_out"]
    assert found["comparisons"][0]["delta"] == 0


@pytest.fixture
def made_server(shared):
    """`lamina serve`, a process of its own."""
    child = shared.child("serve", "sums", "--port", 0, "--cache-tokens", 2048)
    try:
        for line in child.stdout:
            if found := re.search(r"ready: (http://127\.0\.0\.1:\d+)/v1", line):
                yield found[1]
                break
        else:
            pytest.fail(child.stderr.read())
    finally:
        child.terminate()
        child.communicate(timeout=60)


def test_busy_and_broken_for_a_while_is_asked_again(shared, questions, endpoint):
    def answer(body, number):
        if number % 3 == 1:
            return 429, {"error": {"message": "slow down"}}
        return (500, b"oops") if number % 3 == 2 else right(body, number)

    rival = endpoint(answer)
    options = ("--against", rival.url, "--exam", questions, "--json")
    found = shared("arena", "sums", *options).done().json
    assert found["exams"][0]["scores"][1]["value"] == 1.0
    assert len(rival.seen) == 3 * QUESTIONS


def test_what_it_does_not_answer_counts_for_neither(shared, questions, endpoint):
    def answer(body, number):
        return (
            (400, {"error": {"message": "no \x1b[31mred"}})
            if "3 plus" in str(body)
            else right(body, number)
        )

    rival = endpoint(answer)
    found = shared("arena", "sums", "--against", rival.url, "--exam", questions, "--json").done()
    assert found.json["contestants"][1]["unanswered"] == 1
    assert found.json["comparisons"][0]["n"] == QUESTIONS - 1
    told = shared("arena", "sums", "--against", rival.url, "--exam", questions).done().out
    assert f"1 of {QUESTIONS} not answered" in told
    assert "\x1b" not in told


def test_a_dead_endpoint_ends_the_match(shared, questions, endpoint):
    rival = endpoint(lambda body, number: (401, {"error": {"message": "no such key"}}))
    options = ("--against", rival.url, "--exam", questions)
    shared("arena", "sums", *options).refused("did not answer", "no such key", code=1)
    closed = endpoint(right)
    closed.close()
    shared("arena", "sums", "--against", closed.url, "--exam", questions).refused(
        "does not say which models it has", "--model NAME"
    )


def test_garbage_is_an_answer_that_is_wrong(shared, questions, endpoint):
    rival = endpoint(lambda body, number: completion(None, [("f", "{not json")], usage=None))
    found = shared(
        "arena", "sums", "--against", rival.url, "--exam", questions, "--price-in", 1, "--json"
    ).done()
    assert found.json["exams"][0]["scores"][1]["value"] == 0.0
    assert found.json["contestants"][1]["cost_per_thousand"] is None
    assert found.json["contestants"][1]["tokens_out"] is None


def test_models_that_want_another_word_for_the_limit(shared, questions, endpoint):
    def answer(body, number):
        if "max_tokens" in body:
            return 400, {"error": {"message": "use 'max_completion_tokens' instead"}}
        return right(body, number)

    rival = endpoint(answer)
    found = shared("arena", "sums", "--against", rival.url, "--exam", questions, "--json").done()
    assert found.json["exams"][0]["scores"][1]["value"] == 1.0
    assert rival.seen[-1][0]["max_completion_tokens"] == 48


def test_calls_are_scored_as_calls(shared, tmp_path, endpoint):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    row = {
        "messages": [
            {"role": "user", "content": "How is the weather in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [tool],
    }
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(row) + "\n")
    rival = endpoint(lambda body, n: completion("", [("weather", '{"city":"Rome"}')]))
    found = shared("arena", "pico", "--against", rival.url, "--exam", path, "--json").done().json
    scores = {exam["exam"]: exam["scores"][1]["value"] for exam in found["exams"]}
    assert scores == {"calls/tool_call": 1.0}
    assert rival.seen[0][0]["tools"] == [tool]


def test_what_cannot_be_asked_is_said(shared, questions, endpoint):
    shared("arena", "times", "--against", "sums").refused(
        "there is no question to ask", "likelihoods", "--exam FILE"
    )
    shared("arena", "times", "--against", "sums", "--exam", "nothing").refused(
        "no exam of this stack, and no file of questions"
    )
    shared("arena", "times", "--against", "https://", "--exam", questions).refused("no URL")
    several = endpoint(right, models=("one", "two"))
    shared("arena", "sums", "--against", several.url, "--exam", questions).refused(
        "has 2 models", "one", "two"
    )
