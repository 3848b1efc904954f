"""`lamina plan` through the program: from configurations alone, and from a base with real rows."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.program import config_of
from tests.pico import pico_base


def minutes(found, way):
    return found["ways"][way]["minutes"]


def test_loras_claim_from_gpt3s_shape_alone(program):
    """arXiv:2106.09685, section 4.2: r = 4 on q and v, from 350 GB to 35 MB."""
    found = program(
        "plan", "--on", "gpt3-175b", "--rank", 4, "--target", "q_proj", "--target", "v_proj",
        "--hardware", "h100", "--json",
    ).done().json  # fmt: skip
    layer, full = found["ways"]["layer"], found["ways"]["full"]
    assert layer["trainable"] == 18_874_368
    assert layer["bytes"] == 37_748_736  # 36.0 MiB
    assert full["bytes"] == 2 * found["parameters"] == 349_208_518_656
    assert found["reduction"] == pytest.approx(9251, abs=1)
    assert found["known_by"] == "its configuration alone"
    assert not full["fits"]
    low, high = minutes(found, "layer")
    assert 0 < low < high  # a spec sheet gives no single number
    assert found["updates_for"]["scratch"] > 1e6


def test_a_configuration_needs_no_torch(tmp_path):
    words = ["plan", "--on", "llama3-8b", "--hardware", "rtx4090", "--json"]
    code = (
        "import sys\nfrom lamina.cli.app import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"LAMINA_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stderr.strip() == "False", done.stderr
    assert json.loads(done.stdout)["parameters"] == 8_030_261_248


def test_a_folder_and_a_file_are_configurations(program, tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 300,
              "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--hardware", "laptop", "--rows", 40, "--tokens", 4000, "--json")
    folder = program("plan", "--on", tmp_path, *options).done().json
    file = program("plan", "--on", tmp_path / "config.json", *options).done().json
    assert folder["ways"] == file["ways"]
    assert folder["ways"]["layer"]["tokens"] == 4000
    assert 15 < folder["ways"]["scratch"]["tokens"] / folder["parameters"] < 25
    (tmp_path / "bad.json").write_text("[]")
    program("plan", "--on", tmp_path / "bad.json", *options).refused("no configuration")
    (tmp_path / "bad.json").write_text("{")
    program("plan", "--on", tmp_path / "bad.json", *options).refused("cannot be read")
    config["num_experts"] = 8
    (tmp_path / "bad.json").write_text(json.dumps(config))
    program("plan", "--on", tmp_path / "bad.json", *options).refused("experts")


def test_an_update_has_its_own_price(program):
    options = ("--on", "llama2-7b", "--hardware", "rtx4090", "--rows", 1000, "--json")
    found = program("plan", *options).done().json
    assert found["new_rows"] == 100
    layer, update = found["ways"]["layer"], found["ways"]["update"]
    # a tenth of the rows, and as many old ones beside them
    assert update["tokens"] == pytest.approx(0.2 * layer["tokens"])
    assert update["money"][0] == pytest.approx(0.2 * layer["money"][0], rel=1e-3)
    more = program("plan", *options, "--new-rows", 400).done().json
    assert more["ways"]["update"]["money"][0] == pytest.approx(4 * update["money"][0], rel=1e-3)
    of = found["updates_for"]
    assert of["update"] == 1
    assert of["update"] < of["layer"] < of["full"] < of["scratch"]


@pytest.mark.slow
def test_a_probe_gives_minutes_and_is_kept(program, rows):
    options = ("--on", "pico", "--data", rows, "--rank", 2)
    found = program("plan", *options, "--probe", "--json").done().json
    low, high = minutes(found, "layer")
    assert 0 < low == high
    assert found["phases"]["start"] > 0.1
    assert found["phases"]["steps"] > 0
    assert 60 * low == pytest.approx(sum(found["phases"].values()))
    kept = program("plan", *options, "--json").done().json
    assert kept["source"] == found["source"]
    assert minutes(kept, "layer") == pytest.approx([low, high])
    longer = program("plan", *options, "--epochs", 50, "--json").done().json
    assert longer["phases"]["steps"] > 20 * kept["phases"]["steps"]
    assert longer["phases"]["start"] == pytest.approx(kept["phases"]["start"])
    text = program("plan", *options).done().out
    assert "a probe of" in text
    assert "full fine-tuning" in text


def test_nobody_knows_how_fast_a_new_machine_is(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "home", tmp_path / "home")
    base = pico_base(tmp_path / "pico", hidden=32, layers=1)
    program("base", "pull", base, "--as", "pico").done()
    told = program("plan", "--on", "pico", "--rows", 20, "--json").done().json
    assert minutes(told, "layer") is None
    assert "--probe" in told["source"]
    assert told["ways"]["layer"]["flops"] > 0
    assert "?" in program("plan", "--on", "pico", "--rows", 20).done().out


def test_layers_that_were_trained_here_tell_where_no_probe_was(program, rows):
    steps = ("--steps", 5, "--rank", 2, "--max-length", 64, "--accept-regression", "x", "--again")
    program("train", "--on", "pico", "--data", rows, "--as", "fresh", *steps).done()
    found = program("plan", "--on", "pico", "--data", rows, "--json").done().json
    assert "past runs on this machine" in found["source"]
    low, high = minutes(found, "layer")
    assert 0 < low <= high


def test_a_stack_is_planned_over(program, rows):
    found = program(
        "plan", "--on", "sums", "--data", rows, "--hardware", "laptop", "--json"
    ).done().json  # fmt: skip
    assert found["known_by"] == "its stack in the store"
    program("plan", "--on", "nothing", "--hardware", "laptop").refused("nothing")


def test_prices_are_the_users_own(program):
    folder = config_of(program.home)
    folder.mkdir(exist_ok=True)
    path = folder / "hardware.toml"
    options = ("plan", "--on", "llama2-7b", "--json", "--hardware")
    try:
        path.write_text('currency = "EUR"\n[hardware.h100]\nprice_per_hour = 5.98\n')
        dear = program(*options, "h100").done().json
        assert dear["currency"] == "EUR"
        path.write_text('[hardware.desk]\ntitle = "d"\nflops = 1e13\n')
        assert program(*options, "desk").done().json["ways"]["layer"]["money"] is None
        path.write_text("[hardware.h100]\nprice_per_hours = 5.98\n")
        program(*options, "h100").refused("price_per_hours", "did you mean 'price_per_hour'?")
    finally:
        path.unlink()
    cheap = program(*options, "h100").done().json
    assert dear["ways"]["full"]["money"][0] == pytest.approx(2 * cheap["ways"]["full"]["money"][0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--on", "llama2-7b", "--probe"), "with a base of the store"),
        (("--on", "pico", "--probe", "--hardware", "h100"), "with a base of the store"),
        (("--on", "llama2-7b", "--hardware", "abacus"), "rtx4090"),
        (("--on", "llama2-7b", "--target", "c_attn"), "q_proj"),
        (("--on", "llama2-7b", "--rank", "0"), "rank"),
    ],
)
def test_nonsense_is_refused(program, options, said):
    program("plan", *options).refused(said)


def test_rows_are_given_or_counted(program, rows):
    program("plan", "--on", "pico", "--data", rows, "--rows", 4).refused("not at hand")
