"""ChatML for bases without a template: markers from the vocabulary, BOS where it belongs."""

import json

import pytest
from tokenizers import Tokenizer, processors

from lamina.bases.chatml import choose_markers
from lamina.bases.convert import pull
from lamina.bases.load import load_tokenizer
from lamina.bases.sources import parse_source
from tests.pico import CHATML, pico_base

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "It's 'quoted' {{ and }} braced"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.parametrize(
    ("special", "eos", "start", "end", "single"),
    [
        (["<s>", "<|im_start|>", "<|im_end|>"], "<s>", "<|im_start|>", "<|im_end|>", True),
        (
            ["<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"],
            "<eos>",
            "<start_of_turn>",
            "<end_of_turn>",
            True,
        ),
        (["<bos>", "<unused0>", "<unused1>"], "<eos>", "<unused0>", "<unused1>", True),
        (
            ["<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"],
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
            True,
        ),
        (["<|im_start|>"], "</s>", "<|im_start|>", "</s>", True),
        (["<unused0>"], None, "<|im_start|>", "<|im_end|>", False),
    ],
)
def test_markers(special, eos, start, end, single):
    chosen = choose_markers(special, eos)
    assert (chosen.start, chosen.end, chosen.single) == (start, end, single)


def without_template(folder, **changes):
    """A pico base without a template, its ChatML tokens renamed as `changes` says."""
    source = pico_base(folder, chat_template=None)
    text = (source / "tokenizer.json").read_text()
    for old, new in changes.get("rename", {}).items():
        text = text.replace(json.dumps(old), json.dumps(new))
    (source / "tokenizer.json").write_text(text)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    if changes.get("bos"):
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 4)]
        )
        tokenizer.save(str(source / "tokenizer.json"))
    return source


def pulled(source, tmp_path):
    return pull(parse_source(str(source)), tmp_path / "work", progress=lambda _: None)


def test_own_markers_render_as_chatml_does(tmp_path):
    base = pulled(without_template(tmp_path / "s"), tmp_path)
    assert base.config.template_origin == "chatml"
    assert "no chat template" in base.notes[0]
    ours = load_tokenizer(base.directory)
    for asked in (True, False):
        rendered = ours.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=asked)
        assert rendered == ours.apply_chat_template(
            MESSAGES, chat_template=CHATML, tokenize=False, add_generation_prompt=asked
        )
    ends = json.loads((base.directory / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2]


def test_reserved_tokens_and_bos_are_one_token_each(tmp_path):
    rename = {"<|im_start|>": "<unused0>", "<|im_end|>": "<unused1>"}
    base = pulled(without_template(tmp_path / "s", rename=rename, bos=True), tmp_path)
    assert "<unused0> … <unused1>, after <bos>" in base.notes[0]
    tokenizer = load_tokenizer(base.directory)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[:2] == [4, 1]
    assert (ids.count(4), ids.count(1), ids.count(2)) == (1, 4, 3)


def test_without_reserved_tokens_nothing_is_added_and_eos_ends_a_turn(tmp_path):
    rename = {"<|im_start|>": "<a>", "<|im_end|>": "<b>"}
    source = without_template(tmp_path / "s", rename=rename)
    text = (source / "tokenizer.json").read_text().replace("<reserved", "<kept")
    (source / "tokenizer.json").write_text(text)
    base = pulled(source, tmp_path)
    tokenizer = load_tokenizer(base.directory)
    assert len(tokenizer) == len(load_tokenizer(source)) == 384
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert rendered.count("<|im_start|>") == rendered.count("<|endoftext|>") == 3
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    assert ids.count(0) == 3
    assert tokenizer.decode(ids) == rendered
