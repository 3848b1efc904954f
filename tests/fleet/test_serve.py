"""`lamina serve --replicas`: two hosts answer as one process does, whatever dies."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.fleet.hosts import BIN, ended, until
from tests.serve.bases import VOCAB
from tests.stacks import new_store, put_stack

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PORT = 8123
REPLICA = "ray::ServeReplica"
STACKS = ("one", "two", "pico")
NEW = ("red", "green", "blue", "grey")
"""Stacks that one test alone asks."""
DRAWN = {"temperature": 1.2, "top_p": 0.9, "seed": 5}
GREEDY = {"temperature": 0}
LONG = "the user asks a question and the assistant answers it in one short sentence " * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Pico models that the kernels take: answers are equal to the bit, on any host."""
    made = new_store(tmp_path_factory.mktemp("serve") / "store", hidden=128, vocab=VOCAB)
    put_stack(made, "one", 1)
    put_stack(made, "two", 2)
    for name in NEW:
        put_stack(made, name, 1)
    return made


class Client:
    """Asks a server at a port of this thread's host."""

    def __init__(self, port):
        self.port = port

    def said(self, method, path, body=None, each=None):
        """Status and body; `each` hears every line as it comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            if each is None:
                return answer.status, answer.read().decode()
            lines = []
            for line in answer:
                lines.append(line.decode())
                each(line)
            return answer.status, "".join(lines)

    def ask(self, stack="one", prompt="the user asks", new=60, **more):
        """The choice of a completion."""
        body = {"model": stack, "prompt": prompt, "max_tokens": new, **more}
        status, text = self.said("POST", "/v1/completions", body)
        assert status == 200, text
        answer = json.loads(text)
        return answer["choices"][0] | {"cached": answer["usage"]["prompt_tokens_details"]}

    def streamed(self, stack="one", prompt="the user asks", new=60, each=None, **more):
        """The text and the number of its pieces."""
        body = {"model": stack, "prompt": prompt, "max_tokens": new, "stream": True, **more}
        status, text = self.said("POST", "/v1/completions", body, each or (lambda line: None))
        assert status == 200, text
        assert text.rstrip().endswith("data: [DONE]"), text[-500:]
        events = [json.loads(found) for found in re.findall(r"^data: (\{.*)$", text, re.M)]
        pieces = [event["choices"][0]["text"] for event in events]
        return "".join(pieces), len(pieces)

    def chat(self, stack="one", **more):
        body = {"model": stack, "messages": [{"role": "user", "content": "Hello"}], **more}
        status, text = self.said("POST", "/v1/chat/completions", body)
        assert status == 200, text
        return json.loads(text)["choices"][0]

    def metrics(self):
        _, text = self.said("GET", "/metrics")
        return {
            name: float(value)
            for name, value in re.findall(r"^lamina_engine_(\w+)\{base=.*?\} (\S+)$", text, re.M)
        }


class Front(Client):
    """The command on the first host."""

    def __init__(self, hosts, store):
        super().__init__(PORT)
        self.hosts, self.store, self.process = hosts, store, None
        self.err = []

    def begin(self, *words, wait=True):
        if self.process is not None and self.process.poll() is None:
            return self
        self.process = self.hosts.lamina(
            self.store.root, "serve", "--port", PORT, *(words or ("--replicas", 2))
        )
        threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True).start()
        if wait:
            line = ""
            while not line.startswith("ready"):
                line = self.process.stdout.readline()
                assert line, "".join(self.err)
        return self

    def _read(self, stream):
        with stream:
            for line in stream:
                self.err.append(line)

    def replicas(self):
        return [pid for host in (0, 1) for pid in self.hosts.pids(host, REPLICA)]

    def end(self, how):
        self.process.send_signal(how)
        status = self.process.wait(90)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def running(hosts, store):
    made = Front(hosts, store)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGINT)
    until(lambda: not made.replicas())


@pytest.fixture
def front(running):
    return running.begin()


@pytest.fixture(scope="module")
def there(hosts):
    """Does things on the first host, many at once."""
    with hosts.threads(0, 32) as pool:
        yield lambda work, *given, **more: pool.submit(work, *given, **more)


@pytest.fixture(scope="module")
def plain(store):
    """`lamina serve` as ever, on this machine."""
    process = subprocess.Popen(
        [BIN / "lamina", "serve", "--port", "0"],
        env={**os.environ, "LAMINA_HOME": str(store.root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    line = ""
    while not line.startswith("ready"):
        line = process.stdout.readline()
    yield Client(int(re.search(r":(\d+)/v1", line)[1]))
    process.terminate()
    ended(process)


def seconds_of(pid):
    """Processor time that a process's threads have had."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def owner(front, there, stack):
    """The process that answers for a stack, and its last answer."""
    before = {pid: seconds_of(pid) for pid in front.replicas()}
    for seed in range(8):
        answer = there(front.ask, stack, LONG, 300, temperature=1.5, seed=seed).result()
    return max(before, key=lambda pid: seconds_of(pid) - before[pid]), answer


def all_there(front, there):
    until(lambda: len(front.replicas()) == there(front.metrics).result().get("replicas") == 2)


def test_answers_are_those_of_one_process(front, there, plain):
    heard = {}
    for stack in STACKS:
        for draw in (GREEDY, DRAWN, DRAWN | {"seed": 6}):
            asked = {"stack": stack, "logprobs": 2} | draw
            heard[str(asked)] = there(front.ask, **asked).result()
            assert heard[str(asked)] == plain.ask(**asked)
    assert len({answer["text"] for answer in heard.values()}) == 9
    text, pieces = there(front.streamed, "two", new=300, **DRAWN).result()
    assert text == plain.ask("two", new=300, **DRAWN)["text"]
    assert pieces > 10
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    kept = there(front.chat, "two", response_format=form, **DRAWN).result()
    assert kept == plain.chat("two", response_format=form, **DRAWN)
    assert json.loads(kept["message"]["content"])["a"] in ("x", "yes")
    unknown = {"model": "no", "prompt": "a"}
    status, text = there(front.said, "POST", "/v1/completions", unknown).result()
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")


def test_a_stack_stays_where_it_is_held_and_all_answer(front, there):
    for stack in NEW:
        there(front.ask, stack, LONG, 2).result()
        time.sleep(1)  # in which it becomes known who has it
    owners = {stack: owner(front, there, stack)[0] for stack in NEW}
    assert set(owners.values()) == set(front.replicas())
    for stack in NEW * 2:
        who, answer = owner(front, there, stack)
        assert who == owners[stack]
        assert answer["cached"]["cached_tokens"] >= 32  # its beginning is in memory there
    until(lambda: there(front.metrics).result()["tokens_cached"] > 32 * 8 * len(NEW) * 2, 20)
    assert there(front.metrics).result()["replicas"] == 2


def test_who_leaves_frees_its_place(front, there):
    class LeftError(Exception):
        pass

    def leave(line):
        if line.startswith(b"data"):
            raise LeftError

    with pytest.raises(LeftError):
        there(front.streamed, "one", new=1900, each=leave, **GREEDY).result()
    before = time.monotonic()
    (pid,) = {owner(front, there, "one")[0]}
    until(lambda: there(front.metrics).result()["running"] == 0, 20)
    idle = seconds_of(pid)
    time.sleep(1)
    assert seconds_of(pid) - idle < 0.5
    assert time.monotonic() - before < 20


def test_the_answer_of_a_replica_that_is_killed_goes_on(front, there, plain):
    for draw in (GREEDY, DRAWN):
        all_there(front, there)
        expected = plain.ask("two", new=1900, **draw)["text"]
        victim, _ = owner(front, there, "two")
        lines, killed = [], []

        def each(line, lines=lines, killed=killed, victim=victim):
            lines.append(line)
            if len(lines) == 10:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        text, _ = there(front.streamed, "two", new=1900, each=each, **draw).result()
        assert killed
        assert text == expected


def test_of_many_answers_none_is_lost(front, there, plain):
    asked = [
        {"stack": STACKS[n % 3], "new": 1900, "prompt": f"the user asks {n}", **DRAWN, "seed": n}
        for n in range(20)
    ]
    expected = [plain.ask(**each)["text"] for each in asked]
    for many in (False, True):  # the busiest one, then all at once
        all_there(front, there)
        began = {pid: seconds_of(pid) for pid in front.replicas()}

        def had(pid, began=began):
            return seconds_of(pid) - began[pid]

        heard = [there(front.ask, **each) for each in asked]
        until(lambda began=began, had=had: max(map(had, began)) > 0.2)
        assert sum(not each.done() for each in heard) >= 10
        for pid in began if many else [max(began, key=had)]:
            os.kill(pid, signal.SIGKILL)
        assert [each.result()["text"] for each in heard] == expected


def test_asked_to_end_it_lets_answers_finish(front, there, plain):
    all_there(front, there)
    came = threading.Event()
    heard = [
        there(front.streamed, stack, new=1500, each=lambda line: came.set(), **GREEDY)
        for stack in STACKS
    ]
    assert came.wait(60)
    assert front.end(signal.SIGTERM) == 0
    for stack, each in zip(STACKS, heard, strict=True):
        assert each.result()[0] == plain.ask(stack, new=1500, **GREEDY)["text"]
    assert not front.replicas()


def test_ctrl_c_while_it_begins_and_after(running, there):
    front = running.begin(wait=False)
    until(lambda: front.replicas())
    assert front.end(signal.SIGINT) != 0
    assert not front.replicas()
    assert not any("Traceback" in line for line in front.err)
    front.begin("--base", "pico")  # no number: one for each machine
    assert len(front.replicas()) == 2
    assert front.end(signal.SIGINT) == 0
    assert not front.replicas()


def test_what_a_killed_command_leaves_goes_by_itself(running, there, plain):
    front = running.begin()
    left = front.replicas()
    front.end(signal.SIGKILL)
    assert front.replicas() == left
    front.begin()  # there is no room yet: it waits, and says so
    assert any("waiting for 2 replicas with 1 processor each" in line for line in front.err)
    assert not set(front.replicas()) & set(left)
    assert there(front.ask, "one", **GREEDY).result() == plain.ask("one", **GREEDY)


def test_what_is_wrong_is_said_at_once(hosts, store, tmp_path):
    status, _, said = ended(hosts.lamina(store.root, "serve", "--port", 0, "--replicas", 9))
    assert status == 2
    assert "9 replicas are more than this cluster has processors (2)" in said
    words = ("serve", "--port", 0, "--replicas", 2, "--engine", "vllm")
    status, _, said = ended(hosts.lamina(store.root, *words))
    assert status == 2
    assert "--engine vllm answers by itself" in said


def test_a_replica_that_cannot_begin_says_why(hosts, running, tmp_path):
    if running.process is not None and running.process.poll() is None:
        running.end(signal.SIGINT)
    home = new_store(tmp_path / "home", hidden=128, vocab=VOCAB)
    weights = max((home.root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    weights.unlink()
    status, _, said = ended(hosts.lamina(home.root, "serve", "--port", 0, "--replicas", 1))
    assert status == 2, said
    assert "the store has no blob" in said
    assert "Traceback" not in said
    assert "pending" not in said
