"""`lamina serve` and `lamina access`."""

import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cli.program import SECONDS


def test_keys_are_made_listed_and_forgotten(program):
    made = program("access", "add", "ann", "--stacks", "sums,times", "--json").done().json
    assert made["key"].startswith("lamina-")
    shown = program("access", "add", "bob", "--role", "admin", "--requests-per-minute", 3)
    assert shown.done().out.startswith("lamina-")
    assert shown.out != made["key"]
    (ann, bob) = program("access", "list", "--json").done().json["keys"]
    assert (ann["name"], ann["role"], ann["stacks"]) == ("ann", "use", ["sums", "times"])
    assert (bob["role"], bob["requests_per_minute"]) == ("admin", 3)
    assert "sha256" not in ann
    assert "bob" in program("access", "list").done().out
    program("access", "add", "ann").refused("there is a key 'ann' already")
    program("access", "rm", "ann").done()
    program("access", "rm", "ann").refused("there is no key", "bob")


def test_wrong_keys_are_refused(program):
    program("access", "add", "x", "--role", "boss").refused("use and admin")
    program("access", "add", "no good").refused("no name for a key")
    program("access", "add", "x", "--stacks", "No Good").refused("is not a name")
    assert program("access", "list").done().out.startswith("no keys")


def test_nobody_else_is_let_in_without_a_key(program):
    program("serve", "--host", "0.0.0.0").refused("there is no key", "lamina access add")


def test_what_cannot_be_served_is_refused(program, empty):
    program("serve", "nothing").refused("nothing is called 'nothing'")
    program("serve", "--engine", "tgi").refused("lamina, vllm, llamacpp")
    program("serve", "--body-size", "much").refused("no size of memory")
    program("serve", "--engine", "vllm", "--host", "0.0.0.0").refused("this machine alone")


def test_an_empty_store_has_nothing_to_serve(empty):
    empty("serve").refused("nothing to serve", "lamina base pull")


def test_without_the_libraries_it_says_what_to_install(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lamina.web.server", raising=False)
    program("serve").refused("serving needs uvicorn", "pip install 'lamina[serve]'")


def test_vllm_that_is_not_there_is_told_what_to_run(program, tmp_path):
    told = program("serve", "times", "--engine", "vllm", PATH=str(tmp_path))
    told.refused("vllm serve", "--enable-lora", "--max-lora-rank 8", "times=")


@pytest.mark.slow
def test_vllm_is_started_with_the_right_flags(program, tmp_path):
    script = tmp_path / "vllm"
    script.write_text('#!/bin/sh\necho "started: $*"\n')
    script.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = program.spawn(
        "serve", "sums", "--engine", "vllm", "--port", 9, env={"PATH": path}
    ).done()
    assert re.match(
        r"started: serve \S+ --served-model-name pico --host 127.0.0.1 --port 9", done.out
    )
    assert "--lora-modules sums=" in done.out


def test_llamacpp_that_is_not_there_is_told_what_to_run(program, tmp_path):
    told = program("serve", "sums", "--engine", "llamacpp", PATH=str(tmp_path))
    told.refused("llama-server -m ", "model-f16.gguf --alias pico", "--lora-init-without-apply")
    told.refused("  0  sums\n", 'sums: "lora": [{"id": 0, "scale": 1}]')
    program("serve", "pico", "--engine", "llamacpp", PATH=str(tmp_path)).refused("serving pico\n")


@pytest.mark.slow
def test_llamacpp_is_started_with_the_right_flags(program, tmp_path):
    script = tmp_path / "llama-server"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = program.spawn(
        "serve", "times", "sums", "--engine", "llamacpp", "--port", 9, env={"PATH": path}
    ).done()
    dash_m, model, *between, dash_lora, loras, last = done.out.splitlines()
    assert between == ["--alias", "pico", "--jinja", "--host", "127.0.0.1", "--port", "9"]
    assert (dash_m, dash_lora, last) == ("-m", "--lora", "--lora-init-without-apply")
    files = [Path(file).read_bytes() for file in (model, *loras.split(","))]
    assert [content[:4] for content in files] == [b"GGUF"] * 3
    assert "  0  times\n  1  sums\n" in done.err
    assert 'pico: "lora": [{"id": 0, "scale": 0}, {"id": 1, "scale": 0}]' in done.err


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(program):
    secret = program("access", "add", "ann", "--json").done().json["key"]
    child = program.child("serve", "--port", 0, "--cache-tokens", 2048, "--layer-memory", "1MB")
    try:
        said = [child.stdout.readline() for _ in range(4)]
        url = re.search(r"ready: (http://127\.0\.0\.1:\d+)/v1", "".join(said))[1]
        assert "serving pico, sums, sums:v1, times, times:v1" in said[0]
        body = {"model": "times", "messages": [{"role": "user", "content": "what is 2 times 2?"}]}
        asked = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body | {"max_tokens": 8}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {secret}"},
        )
        with urllib.request.urlopen(asked, timeout=SECONDS) as answered:
            assert json.load(answered)["usage"]["completion_tokens"] <= 8
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=SECONDS)
    finally:
        child.kill()
    assert child.returncode == 0, err
    records = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [record["status"] for record in records] == [200]
    assert records[0]["key"] == "ann"
    assert "what is 2" not in err
