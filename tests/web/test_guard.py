"""Who may ask, how much, how large; logs, metrics."""

import json
import os
import stat

import pytest
from starlette.testclient import TestClient

from lamina.core.errors import (
    CorruptBlobError,
    LaminaError,
    StoreFullError,
    UnknownNameError,
    UsageError,
)
from lamina.flows.hosting import Host
from lamina.web.app import create_app
from lamina.web.guard import Guard
from lamina.web.keys import Keys, NewKey
from lamina.web.limits import Limits
from lamina.web.settings import Settings
from tests.web.engine import Fake, forever


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def test_without_keys_this_machine_may_ask(world):
    assert world.chat(headers=bearer("whatever")).status_code == 200
    assert world.client.get("/metrics").status_code == 200


def test_as_soon_as_there_is_a_key_one_is_needed(world):
    secret = world.keys.add(NewKey("ann"))
    for headers in (None, bearer("lamina-wrong"), {"authorization": f"Basic {secret}"}, bearer("")):
        refused = world.chat(headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert world.chat(headers=bearer(secret)).status_code == 200
    assert world.client.get("/healthz").status_code == 200
    assert world.client.get("/v1/models").status_code == 401
    world.keys.remove("ann")
    assert world.chat().status_code == 200


def test_a_server_that_others_reach_is_never_open(make):
    world = make(host="0.0.0.0")
    assert world.chat().status_code == 401
    secret = world.keys.add(NewKey("ann"))
    assert world.chat(headers=bearer(secret)).status_code == 200
    world.keys.remove("ann")
    assert world.chat(headers=bearer(secret)).status_code == 401


def test_roles(world):
    use = world.keys.add(NewKey("ann"))
    admin = world.keys.add(NewKey("bob", role="admin"))
    assert world.client.get("/metrics").status_code == 401
    assert world.client.get("/metrics", headers=bearer(use)).status_code == 403
    assert world.client.get("/metrics", headers=bearer(admin)).status_code == 200
    assert world.client.get("/v1/models", headers=bearer(admin)).status_code == 200


def test_a_key_for_some_stacks(world):
    secret = world.keys.add(NewKey("shop", stacks=("sales",)))
    found = world.client.get("/v1/models", headers=bearer(secret)).json()["data"]
    assert [m["id"] for m in found] == ["sales"]
    assert world.chat(model="sales", headers=bearer(secret)).status_code == 200
    for model in ("support", "pico"):
        refused = world.chat(model=model, headers=bearer(secret))
        assert refused.status_code == 404
        assert world.client.get(f"/v1/models/{model}", headers=bearer(secret)).status_code == 404
    guessed = world.chat(model="suport", headers=bearer(secret)).json()["error"]["message"]
    assert "nothing is called 'suport'" in guessed
    assert "support" not in guessed  # names of others are not told


def test_the_pages_need_a_key_that_may_see_all_stacks(world):
    assert world.client.get("/ui/api/stacks").status_code == 200
    whole = world.keys.add(NewKey("ann"))
    some = world.keys.add(NewKey("bob", stacks=("one",)))
    assert world.client.get("/").status_code == 200  # holds nothing of the store
    assert world.client.get("/ui/api/stacks").status_code == 401
    assert world.client.get("/ui/api/stacks", headers=bearer(some)).status_code == 403
    assert world.client.get("/ui/api/stacks", headers=bearer(whole)).status_code == 200


def test_requests_a_minute(world):
    secret = world.keys.add(NewKey("ann", requests_per_minute=2))
    first = world.chat(headers=bearer(secret))
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert world.chat(headers=bearer(secret)).status_code == 200
    refused = world.chat(headers=bearer(secret))
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_tokens_a_minute_count_prompts_and_answers(world):
    secret = world.keys.add(NewKey("ann", tokens_per_minute=10))
    used = world.chat(headers=bearer(secret))
    assert used.json()["usage"]["total_tokens"] > 10
    refused = world.chat(headers=bearer(secret))
    assert refused.status_code == 429
    assert "10 tokens a minute" in refused.json()["error"]["message"]


def test_buckets_refill_in_a_minute():
    from lamina.web.keys import Key

    now = [0.0]
    limits = Limits(lambda: now[0])
    key = Key(name="a", sha256="sha256:" + "0" * 64, requests_per_minute=2, tokens_per_minute=60)
    assert [limits.ask(key).refused is None for _ in range(3)] == [True, True, False]
    assert limits.ask(key).retry_after == 30
    now[0] = 30.0
    assert limits.ask(key).refused is None
    limits.spend(key, 120)
    now[0] = 60.0
    assert "tokens" in limits.ask(key).refused
    assert limits.ask(key).retry_after == 31
    now[0] = 600.0
    assert limits.ask(key).headers["x-ratelimit-remaining-tokens"] == "60"
    other = key.model_copy(update={"requests_per_minute": 9})
    assert limits.ask(other).headers["x-ratelimit-remaining-requests"] == "8"


def test_the_file_holds_no_key_and_nobody_else_reads_it(tmp_path):
    keys = Keys(tmp_path / "access.json")
    secret = keys.add(NewKey("ann", stacks=("support:v2",), tokens_per_minute=5))
    assert secret.startswith("lamina-")
    assert len(secret) > 40
    assert secret not in keys.path.read_text()
    assert secret.removeprefix("lamina-") not in keys.path.read_text()
    assert stat.S_IMODE(os.stat(keys.path).st_mode) == 0o600
    again = Keys(keys.path)
    assert again.find(secret).name == "ann"
    assert again.find(secret[:-1]) is None
    assert again.find("\ud800") is None
    with pytest.raises(UsageError, match="already"):
        again.add(NewKey("ann"))
    for bad in (NewKey("a b"), NewKey(""), NewKey("x", stacks=("No Name",))):
        with pytest.raises(UsageError):
            again.add(bad)
    with pytest.raises(UnknownNameError, match="keys: ann"):
        again.remove("bob")
    again.remove("ann")
    assert keys.find(secret) is None


def test_a_damaged_file_lets_nobody_in(world):
    secret = world.keys.add(NewKey("ann"))
    world.keys.path.write_text("{")
    assert world.chat(headers=bearer(secret)).status_code == 503
    assert world.chat().status_code == 503


def test_a_body_that_is_too_large_is_not_read(make):
    world = make(body_bytes=1000)
    refused = world.chat("x" * 2000)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "body_too_large"

    def pieces():
        for _ in range(50):
            yield b" " * 100

    refused = world.client.post(
        "/v1/chat/completions", content=pieces(), headers={"content-type": "application/json"}
    )
    assert refused.status_code == 413


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "application/json", 400),
        (b'{"model": "x", "n": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"model": "x", "temperature": NaN}', "application/json", 400),
        (b'{"\\ud800": 1}', "application/json", 400),
        (
            b'{"model": "\\u0000", "messages": [{"role":"user","content":"x"}]}',
            "application/json",
            400,
        ),
        (b"model=support", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
    ],
)
def test_hostile_bodies(world, content, kind, status):
    for path in ("/v1/chat/completions", "/v1/completions"):
        answered = world.client.post(path, content=content, headers={"content-type": kind})
        assert answered.status_code == status, answered.text
        assert set(answered.json()["error"]) == {"message", "type", "param", "code"}
    assert not any("bug" in record for record in world.records)


def test_another_host_name_is_refused_on_this_machine(world, make):
    for host, status in (("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:8080", 200)):
        assert world.client.get("/healthz", headers={"host": host}).status_code == status
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80"):
        refused = world.client.get("/v1/models", headers={"host": host})
        assert refused.status_code == 403, host
    wide = make(host="0.0.0.0")
    assert wide.client.get("/healthz", headers={"host": "box.local"}).status_code == 200


def test_no_page_of_another_origin_reads_answers_unless_allowed(world, make):
    origin = {"origin": "https://evil.example"}
    ask = {**origin, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in world.client.get("/healthz", headers=origin).headers
    assert world.client.options("/v1/models", headers=ask).status_code >= 400
    open_ = make(cors=("https://good.example",))
    good = {"origin": "https://good.example", "access-control-request-method": "POST"}
    allowed = open_.client.options("/v1/models", headers=good)
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    assert open_.client.options("/v1/models", headers=ask).status_code == 400


def test_a_full_queue_is_429(make):
    world = make(Fake(most=0))
    refused = world.chat()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"


def test_what_was_refused_costs_no_tokens(make):
    world = make(Fake(most=0))
    secret = world.keys.add(NewKey("ann", tokens_per_minute=5))
    for _ in range(3):
        refused = world.chat(headers=bearer(secret))
        assert refused.json()["error"]["code"] == "busy"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "5"


def test_when_the_second_choice_is_refused_the_first_is_freed(make):
    world = make(Fake(forever, most=1, delay=0.01))
    assert world.chat(n=2).status_code == 429
    assert world.engine.stats().running == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreFullError("no space left"), 503),
        (CorruptBlobError("a blob is damaged"), 503),
        (LaminaError("no memory"), 500),
    ],
)
def test_a_base_that_cannot_be_loaded_is_told_and_tried_again(seed_store, error, status):
    tried = []

    def make(*_):
        tried.append(1)
        if len(tried) == 1:
            raise error
        return Fake()

    client = TestClient(create_app(Host(seed_store, make), Settings()), base_url="http://localhost")
    body = {"model": "support", "prompt": "the user"}
    refused = client.post("/v1/completions", json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["message"] == error.message
    assert client.post("/v1/completions", json=body).status_code == 200


def test_logs_say_what_happened_and_not_what_was_said(world):
    world.chat("my secret", stream=True)
    world.chat("my secret", model="nothing")
    world.chat("my secret", temprature="my secret")
    first, second, third = world.records
    assert (first["status"], first["model"], first["method"]) == (200, "support", "POST")
    assert first["stack"].startswith("sha256:")
    assert first["prompt_tokens"] > 0
    assert first["completion_tokens"] > 0
    assert first["first_token_ms"] >= 0
    assert (second["status"], third["status"]) == (404, 400)
    assert "secret" not in json.dumps(world.records)


def test_logs_with_contents_only_when_asked(make):
    world = make(log_contents=True)
    world.chat("my secret")
    (record,) = world.records
    assert record["messages"][0]["content"] == "my secret"
    assert "my secret" in record["answers"][0]


def test_a_bug_is_500_and_logged_without_its_words(make):
    world = make(Fake(lambda request: 1 / 0))
    assert world.chat("my secret").status_code == 500
    (record,) = world.records
    assert record["status"] == 500
    assert record["bug"].endswith("ZeroDivisionError")
    assert "secret" not in json.dumps(world.records)


def test_metrics(world):
    world.said()
    world.chat(model="nothing")
    world.client.get("/nowhere/at/all")
    text = world.client.get("/metrics").text
    assert 'lamina_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'lamina_requests_total{route="/v1/chat/completions",status="404"} 1.0' in text
    assert 'lamina_requests_total{route="none",status="404"} 1.0' in text
    assert "lamina_first_token_seconds_count 1.0" in text
    assert "lamina_token_seconds_bucket" in text
    assert 'lamina_engine_running{base="pico"} 0.0' in text
    said = world.records[0]["completion_tokens"]
    assert f"lamina_completion_tokens_total {float(said)}" in text
    assert f'lamina_engine_tokens_out{{base="pico"}} {float(said)}' in text


def test_unknown_places_and_methods_are_told_in_the_same_form(world):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
    ):
        answered = world.client.request(method, path)
        assert answered.status_code == status
        assert answered.json()["error"]["message"]


def test_the_guard_stands_before_every_route(world):
    kinds = [middleware.cls for middleware in world.client.app.user_middleware]
    assert kinds[-1] is Guard
