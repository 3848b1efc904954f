"""The Hub's client against a stand-in server: commits, resuming, refusals, time limits."""

import json
import shutil
import time

import pytest

from lamina.bases import hub
from lamina.bases.convert import pull
from lamina.bases.sources import parse_source
from lamina.core.errors import BaseError
from tests.bases.stand_in import COMMIT, serve
from tests.pico import pico_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pico_base(tmp_path_factory.mktemp("pico") / "llama")


@pytest.fixture
def server(base, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(base, folder)
    with serve(folder) as stand_in:
        yield stand_in


def silent(_):
    pass


def test_a_pull_records_the_commit_and_skips_pickles(server, base, tmp_path):
    (server.folder / "pytorch_model.bin").write_bytes(b"pickle")
    (server.folder / "modeling.py").write_text("raise SystemExit")
    (server.folder / "onnx").mkdir()
    (server.folder / "onnx" / "model.safetensors").write_bytes(b"other")
    source = parse_source("hf:org/name@v1")
    pulled = pull(source, tmp_path / "work", progress=silent, hub_endpoint=server.endpoint)
    assert pulled.source == f"hf:org/name@{COMMIT}"
    assert pulled.config.licence == "apache-2.0"
    weights = pulled.directory / "model.safetensors"
    assert weights.read_bytes() == (base / "model.safetensors").read_bytes()
    assert weights.stat().st_nlink == 2  # linked from the download, not copied
    asked = [path for _, path, _ in server.requests]
    assert not [path for path in asked if path.endswith((".bin", ".py", "onnx/model.safetensors"))]


def test_a_dropped_connection_is_resumed(server, base, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.drops["model.safetensors"] = 1
    repo = hub.resolve("org/name", endpoint=server.endpoint)
    folder = hub.download(repo, tmp_path, endpoint=server.endpoint, progress=silent)
    half = (base / "model.safetensors").stat().st_size // 2
    assert server.got("model.safetensors") == [None, f"bytes={half // 1000 * 1000}-"]
    assert capfd.readouterr() == ("", "")
    assert (folder / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_second_pull_asks_for_no_file_again(server, tmp_path):
    source, said = parse_source("hf:org/name"), []
    first = pull(source, tmp_path, progress=silent, hub_endpoint=server.endpoint)
    gets = len(server.got("model.safetensors"))
    second = pull(source, tmp_path, progress=said.append, hub_endpoint=server.endpoint)
    assert second == first
    assert len(server.got("model.safetensors")) == gets == 1
    assert "already converted" in said[-1]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_download_that_was_spoilt_is_found_and_fetched_again(server, base, tmp_path, name):
    repo = hub.resolve("org/name", endpoint=server.endpoint)
    folder = hub.download(repo, tmp_path, endpoint=server.endpoint, progress=silent)
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BaseError, match="differ from their digests") as caught:
        hub.download(repo, tmp_path, endpoint=server.endpoint, progress=silent)
    assert caught.value.faults == (name,)
    hub.download(repo, tmp_path, endpoint=server.endpoint, progress=silent)
    assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_unknown_repositories_and_revisions(server):
    with pytest.raises(BaseError, match="RepositoryNotFound"):
        hub.resolve("org/other", endpoint=server.endpoint)
    with pytest.raises(BaseError, match=r"at 'v9'.*RevisionNotFound"):
        hub.resolve("org/name", "v9", endpoint=server.endpoint)


def test_a_hub_that_hangs_or_is_not_there_gives_up_in_time(server):
    server.delay = 3.0
    started = time.monotonic()
    with pytest.raises(BaseError, match="Timeout"):
        hub.resolve("org/name", endpoint=server.endpoint, seconds=0.3)
    with pytest.raises(BaseError, match="cannot be had from the Hub"):
        hub.resolve("org/name", endpoint="http://127.0.0.1:9")
    assert time.monotonic() - started < 2.5


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["pytorch_model.bin", "config.json"], "only as pickles"),
        (["consolidated.00.pth"], "only as pickles"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter, not a base"),
        (["model-Q4_0.gguf"], "only GGUF"),
        (["README.md"], r"no model\.safetensors"),
    ],
)
def test_repositories_without_usable_weights_are_refused_before_any_download(tmp_path, files, why):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with serve(tmp_path) as server:
        with pytest.raises(BaseError, match=why):
            hub.resolve("org/name", endpoint=server.endpoint)
        assert [method for method, path, _ in server.requests if "resolve" in path] == []


def test_an_alias_takes_the_hub_where_it_answers(server, tmp_path, monkeypatch):
    from dataclasses import replace

    from lamina.bases import sources

    alias = replace(sources.ALIASES["smollm2-135m"], hub="org/name")
    monkeypatch.setitem(sources.ALIASES, "smollm2-135m", alias)
    pulled = pull(
        parse_source("smollm2-135m"), tmp_path, progress=silent, hub_endpoint=server.endpoint
    )
    assert pulled.source.startswith("hf:org/name@")
    with pytest.raises(BaseError, match="cannot be had"):
        pull(
            parse_source("smollm2-135m@hub"),
            tmp_path,
            progress=silent,
            hub_endpoint="http://127.0.0.1:9",
        )


def test_sharded_weights_without_one_shard_are_refused(server, tmp_path):
    (server.folder / "model.safetensors").rename(server.folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../../etc/passwd"}}
    (server.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError, match="not there") as caught:
        pull(parse_source("hf:org/name"), tmp_path, progress=silent, hub_endpoint=server.endpoint)
    assert caught.value.faults == ("../../etc/passwd",)
