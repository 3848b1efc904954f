"""In from and out to other tools."""

import json

import pytest

peft = pytest.importorskip("peft")


def test_export_peft_comes_back_by_import(program, tmp_path):
    out = tmp_path / "adapter"
    found = program("export", "times", out, "--to", "peft", "--json").done().json
    assert found["parity"]["value"] <= found["parity"]["limit"]
    assert (out / "adapter_model.safetensors").is_file()
    options = ("--on", "pico", "--as", "back", "--licence", "MIT", "--json")
    back = program("import", out, *options).done().json
    assert back["name"] == "back:v1"
    ask = ("--once", "what is 1 plus 2?", "--max-tokens", 8)
    assert program("chat", "back", *ask).out == program("chat", "times", *ask).out
    program("reproduce", "back").refused("was imported: nothing of its own to train it from")


def test_export_hf_is_a_base_again(program, tmp_path):
    program("export", "sums", tmp_path / "model", "--to", "hf").done()
    pulled = program("base", "pull", tmp_path / "model", "--as", "whole", "--json").done().json
    assert pulled["new"] is True


def test_bad_targets_and_folders_are_refused(shared, tmp_path):
    shared("export", "sums", tmp_path, "--to", "peft").refused("exists already")
    shared("export", "sums", tmp_path / "x", "--to", "onnx").refused("hf", "peft")
    shared("export", "nobody", tmp_path / "x", "--to", "peft").refused("nobody")
    assert list(tmp_path.iterdir()) == []


def test_adapters_that_are_none_are_refused(program, tmp_path):
    def take(folder):
        return program("import", folder, "--on", "pico", "--as", "taken")

    take(tmp_path / "none").refused("there is no", "none")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    take(tmp_path).refused("pickle")
    program("export", "sums", tmp_path / "a", "--to", "peft").done()
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    take(tmp_path / "a").refused("dora")
    config.write_text("{")
    take(tmp_path / "a").refused("adapter_config.json")
    assert "taken" not in str(program("list", "--json").json)


def test_import_says_what_it_found_and_lost(program, tmp_path):
    program("export", "sums", tmp_path / "m", "--to", "hf").done()
    how = ("--on", "pico", "--as", "taken")
    done = program("import", tmp_path / "m", *how, "--rank", 2).done()
    assert "taken:v1 is @" in done.out
    assert "m: a whole model" in done.err
    assert "of the difference is lost (Frobenius)" in done.err
    assert "outputs differ from the source's by at most" in done.err
    shown = program("show", "taken").done().out
    assert "imported from checkpoint: rank 2" in shown
    found = program(
        "import", tmp_path / "m", *how[:2], "--as", "near", "--tolerance", 0.01, "--json"
    )
    assert 0 < found.done().json["error"] <= 0.01
    assert found.json["imported"]["kind"] == "checkpoint"


def test_import_options(shared, tmp_path):
    how = ("--on", "pico", "--as", "taken")
    shared("import", tmp_path, *how, "--from", "onnx").refused("known are peft, checkpoint")
    shared("import", tmp_path, *how, "--dora", "keep").refused("fold is the only way")
    shared("import", tmp_path, *how, "--tolerance", 2).refused("between 0 and 1")
    shared("import", tmp_path, *how).refused("holds nothing that can be imported")
    shared("import", "hf:no slash", *how).refused("not of the form org/name")
