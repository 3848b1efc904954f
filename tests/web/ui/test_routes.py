"""The pages' files and their JSON, over HTTP, on real small stores."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lamina.core.names import Name
from lamina.flows import votes
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING
from lamina.web.ui.routes import MOST_BYTES, api
from tests.web.ui.served import app

STATIC = {
    item.name: item.read_bytes()
    for item in files("lamina.web.ui").joinpath("static").iterdir()
    if item.is_file()
}
MOST_LINES = 400
KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
PARSED = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
NOT_THERE = ["stacks/nobody", "exams/nobody", "lineage?name=nobody", "runs/no"]


@pytest.fixture
def client(store):
    with TestClient(app(store)) as made:
        yield made


# -- pages -----------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.texts.append(data.strip())


def test_the_page_loads_only_its_own_files(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = Tags(page.text)
    links = [a.get("src") or a.get("href") for t, a in found.tags if t in ("script", "link", "img")]
    assert len(links) > 4
    for link in links:
        assert link.startswith("/ui/static/"), link
        assert client.get(link).status_code == 200, link


def test_nothing_in_the_page_is_inline(client):
    page = client.get("/")
    found = Tags(page.text)
    assert not any(found.texts)
    for tag, attributes in found.tags:
        assert tag != "style"
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", sorted(STATIC))
def test_files_are_served_as_what_they_are(client, name):
    found = client.get(f"/ui/static/{name}")
    kinds = {
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
        "html": "text/html",
    }
    assert found.content == STATIC[name]
    assert found.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" in found.headers
    again = client.get(f"/ui/static/{name}", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", sorted(STATIC))
def test_files_build_no_page_from_text_and_name_no_other_place(name):
    text = STATIC[name].decode()
    assert len(text.splitlines()) <= MOST_LINES
    code = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|//cdn|@import", code)
    if name.endswith(".js"):
        parsed = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
        )
        assert not re.findall(parsed, code)


def test_modules_import_modules_that_are_there():
    for name, data in STATIC.items():
        if name.endswith(".js"):
            for other in re.findall(r'from "\./([\w.]+)"', data.decode()):
                assert other in STATIC, (name, other)


@pytest.mark.parametrize(
    "path", ["nothing.js", "..%2froutes.py", "%2e%2e%2froutes.py", "../routes.py", "a/b", ".."]
)
def test_no_other_file_is_served(client, path):
    assert client.get(f"/ui/static/{path}").status_code == 404


# -- JSON ------------------------------------------------------------------------------------------


def test_all_that_tells_of_the_store_wants_the_key(store):
    """Whatever route is added later is asked too."""
    made = app(store, key="secret")
    asked = [
        (method, "/ui/api" + re.sub(r"\{\w+\}", "sums", route.path))
        for route in api(store).routes
        for method in route.methods
    ]
    assert len(asked) >= 9
    with TestClient(made) as client:
        for method, path in asked:
            assert client.request(method, path).status_code == 401, path
            wrong = client.request(method, path, headers={"Authorization": "Bearer guess"})
            assert wrong.status_code == 401, path
        known = {"Authorization": "Bearer secret"}
        assert client.get("/ui/api/stacks", headers=known).status_code == 200
        assert client.get("/").status_code == 200
        for name in STATIC:
            assert client.get(f"/ui/static/{name}").status_code == 200


def test_stacks_are_listed_with_layers_and_results(client, shared):
    found = client.get("/ui/api/stacks")
    assert found.headers["cache-control"] == "no-store"
    told = found.json()
    assert [base["name"] for base in told["bases"]] == ["pico"]
    stacks = {stack["name"]: stack for stack in told["stacks"]}
    assert list(stacks) == ["sums", "times"]
    assert [layer["name"] for layer in stacks["times"]["layers"]] == ["sums", "times"]
    assert stacks["times"]["base"] == "pico"
    exam = shared("exam", "times", "--json").done().json["scores"][-1]
    result = stacks["times"]["result"]
    assert (result["value"], result["ci"], result["n"]) == (exam["value"], exam["ci"], exam["n"])


def test_a_stack_is_told_layer_by_layer(client, shared):
    found = client.get("/ui/api/stacks/times").json()
    sums, times = found["layers"]
    assert (sums["author"], sums["rank"], sums["origin"]) == ("Zoë", 2, "trained")
    assert found["base"]["family"] == "llama"
    shown = shared("show", "times", "--json").done().json["layers"]
    assert [layer["bytes"] for layer in found["layers"]] == [layer["bytes"] for layer in shown]
    scores = shared("exam", "times", "--json").done().json["scores"]
    assert [layer["results"][0]["ci"] for layer in (sums, times)] == [s["ci"] for s in scores]
    assert times["cost"]["tokens"] > 0


@pytest.mark.parametrize(
    "path", ["stacks/nobody", "exams/nobody", "lineage?name=nobody", "runs/no"]
)
def test_what_is_not_there_is_refused_with_a_hint(client, path):
    found = client.get(f"/ui/api/{path}")
    assert found.status_code == 404
    assert found.json()["error"]["hint"]


@pytest.mark.parametrize("name", ["<script>", "..", "A b", "x" * 5000, "a%00b", "%F0%9F%98%80"])
def test_what_is_no_name_is_refused(client, name):
    found = client.get(f"/ui/api/stacks/{name}")
    assert found.status_code in (400, 404)
    assert found.headers["content-type"] == "application/json"


def test_exams_lineage_and_cost_are_told(client):
    exams = client.get("/ui/api/exams/times").json()
    assert [v["version"] for v in exams["versions"]] == ["times:v1"]
    assert exams["versions"][0]["passed"] is True
    assert {cell["exam"] for cell in exams["cells"]} == {"sums/loss", "times/loss"}
    nodes = client.get("/ui/api/lineage").json()["nodes"]
    assert nodes[0]["edges"] == [{"kind": "stands on", "to": "sums:v1"}]
    assert len(client.get("/ui/api/lineage", params={"name": "sums"}).json()["nodes"]) == 1
    layers = client.get("/ui/api/cost").json()["layers"]
    assert {layer["name"] for layer in layers} == {"sums", "times"}
    assert all(layer["seconds"] > 0 for layer in layers)


def test_what_a_stack_cost_is_told_as_the_command_tells_it(client, shared):
    found = client.get("/ui/api/stacks/times/cost").json()
    shown = shared("cost", "times", "--json").done().json
    assert {key: found[key] for key in shown} == shown
    assert found["plot"].startswith("<svg ")
    assert client.get("/ui/api/stacks/nobody/cost").status_code == 404
    assert client.get("/ui/api/stacks/pico/cost").status_code == 400  # a bare base


def test_an_answer_is_worked_out_again_when_a_name_moved(client, store):
    before = client.get("/ui/api/stacks").json()["stacks"]
    assert client.get("/ui/api/stacks").json()["stacks"] == before
    times = store.names()["times"]["latest"]
    Store.open(store.root).tag(Name("other"), times, expected=ANYTHING)  # as another process does
    names = [stack["name"] for stack in client.get("/ui/api/stacks").json()["stacks"]]
    assert names == ["other", "sums", "times"]


def test_a_run_is_followed_by_offset(client, store):
    run = client.get("/ui/api/runs").json()["runs"][0]
    assert (run["name"], run["state"], run["result"]) == ("times", "finished", "times:v1")
    path = f"/ui/api/runs/{run['run']}"
    found = client.get(path).json()
    assert found["events"][0]["event"] == "ready"
    assert found["events"][-1]["event"] == "done"
    again = client.get(path, params={"offset": found["offset"]}).json()
    assert (again["events"], again["offset"]) == ([], found["offset"])
    with (store.runs_dir / run["run"] / "events.jsonl").open("a") as handle:
        handle.write('{"event": "looked", "time": 1, "step": 1}\n{"event": "st')
    more = client.get(path, params={"offset": found["offset"]}).json()
    assert [event["event"] for event in more["events"]] == ["looked"]
    assert client.get(path, params={"offset": -1}).status_code == 422


def test_a_damaged_store_says_so(client, store):
    (store.root / "index.json").write_text("{")
    found = client.get("/ui/api/stacks")
    assert found.status_code == 500
    assert "index.json" in found.json()["error"]["message"]


def test_an_empty_store_has_pages(tmp_path):
    with TestClient(app(Store.open(tmp_path / "store"))) as client:
        assert client.get("/").status_code == 200
        for path, key in (("stacks", "stacks"), ("runs", "runs"), ("lineage", "nodes")):
            assert client.get(f"/ui/api/{path}").json()[key] == []
        assert client.get("/ui/api/cost").json()["layers"] == []
        assert client.get("/ui/api/votes").json()["count"] == 0


# -- votes -----------------------------------------------------------------------------------------

BALLOT = {
    "prompt": [{"role": "user", "content": "what is 1 plus 2?"}],
    "left": {"stack": "sums:v1", "answer": "3"},
    "right": {"stack": "pico", "answer": "<b>4</b>"},
    "preferred": "left",
}


def test_a_vote_lands_in_the_file_that_is_named(client, store):
    told = client.post("/ui/api/votes", json=BALLOT)
    assert told.status_code == 201
    assert told.json()["count"] == 1
    assert told.json()["tally"] == [{"a": "pico", "b": "sums:v1", "a_wins": 0, "b_wins": 1}]
    (line,) = Path(told.json()["path"]).read_text("utf-8").splitlines()
    row = json.loads(line)
    assert row["chosen"] == [{"role": "assistant", "content": "3"}]
    assert row["stacks"]["chosen"]["digest"] == store.names()["sums"]["v1"].digest


def test_votes_are_shown_by_the_program(program):
    with TestClient(app(Store.open(program.home))) as client:
        assert "no votes yet" in program("votes").done().out
        client.post("/ui/api/votes", json=BALLOT)
    found = program("votes", "--json").done().json
    assert found["votes"][0]["rejected"] == [{"role": "assistant", "content": "<b>4</b>"}]
    assert found["path"] == str(program.home / "votes.jsonl")
    assert "1 preference pairs" in program("votes").done().out


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"preferred": "middle"}, {}, 400),
        ({"left": {"stack": "nobody", "answer": "3"}}, {}, 404),
        ({"right": {"stack": "pico", "answer": "3"}}, {}, 400),
        ({}, {"Content-Type": "text/plain"}, 400),
        ({}, {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ({}, {"Sec-Fetch-Site": "cross-site"}, 400),
        ({"right": {"stack": "pico", "answer": "x" * 300_000}}, {}, 400),
        ({"right": {"stack": "pico", "answer": "x" * (MOST_BYTES + 1)}}, {}, 400),
    ],
)
def test_what_is_no_vote_is_refused(client, store, change, headers, status):
    body = json.dumps(BALLOT | change)
    sent = {"Content-Type": "application/json"} | headers
    found = client.post("/ui/api/votes", content=body, headers=sent)
    assert found.status_code == status
    assert found.json()["error"]["message"]
    assert not votes.path_of(store).exists()


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client, body):
    sent = {"Content-Type": "application/json"}
    assert client.post("/ui/api/votes", content=body, headers=sent).status_code == 400
