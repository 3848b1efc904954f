"""The model card: what it says of a stack, and that nobody's words become more than words."""

import itertools
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lamina.core.evidence import (
    COST_TYPE,
    SCORES_TYPE,
    CostEvidence,
    NamingEvidence,
    ScoresEvidence,
)
from lamina.core.manifests import Credit, LayerConfig
from lamina.core.report import Silent
from lamina.flows.adapters import export
from lamina.flows.card import gather
from lamina.flows.examine import examine_stack
from lamina.flows.squash import squash
from lamina.share.card import render
from lamina.share.card_facts import CardBase
from lamina.share.card_text import cell, code, one_line
from lamina.stack.resolve import resolve
from tests.flows.world import FIRST, learned
from tests.stacks import BASE
from tests.test_docs import faults, shown

pytestmark = pytest.mark.slow  # whole verbs, again and again

LICENCES = {
    "obligations": ["keep the notices [layer first by ann]"],
    "problems": [{"forbidden": False, "text": "layer second states no licence"}],
}
CERTIFICATE = {
    "parity": {"ok": True, "measure": "logits", "value": 1e-6, "limit": 1e-4},
    "licences": LICENCES,
}
FORMS = ("hub", "peft", "hf", "gguf", "gguf-lora", "ollama", "vllm", "mlx")
SECTIONS = [
    "What it is",
    "Lineage",
    "Exams",
    "What it cost",
    "Licences and obligations",
    "How to use it",
    "Limits, and what is not known",
]
HOSTILE = (
    "x\n---\nlicense: mit\n---\n",
    "`` ` ``` [a](http://evil.example)",
    "<script>alert(1)</script>",
    "![i](http://evil.example/i.png) @someone www.evil.example",
    "a | b | c\n## Heading\n",
    "'; rm -rf ~ #",
    '"); import os; os.system("id") #',
    "\u202eevil\u0000\x1b[31m",
    "- [x] **bold** &lt;b&gt; $x$ ~~s~~",
    "true",
    "*anchor &a !!python/object/apply:os.system ['id']",
    "x" * 5000,
)


def facts_of(store, name="second"):
    return gather(store, resolve(store, name), certificate=CERTIFICATE, where="org/agent")


def tokens_of(card):
    """Block and inline tokens of the text below the metadata, raw HTML allowed."""
    body = card.split("\n---\n", 1)[1]
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    flat = []
    for token in parser.parse(body):
        flat += [token, *(token.children or ())]
    return flat


def headings(tokens):
    return [
        after.content
        for token, after in itertools.pairwise(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]


def test_a_card_says_what_is_on_record(store):
    stack = resolve(store, "second")
    text = render(facts_of(store), "hub")
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "other"
    assert card.data.license_name == "cc0-1.0+not-stated"
    assert not card.data.base_model
    named = {result.dataset_name: result for result in card.data.eval_results}
    assert set(named) == {"first/loss", "second/loss"}
    assert named["second/loss"].metric_type == "loss"
    assert headings(tokens_of(text)) == SECTIONS
    for digest in (stack.digest, stack.config.base, *(layer.digest for layer in stack.layers)):
        assert digest in text
    rows = [line for line in text.split("\n") if line.startswith(("| `base`", "| `1.", "| `2."))]
    assert [len(re.findall(r"\[\d+\.\d+, \d+\.\d+\]", row)) for row in rows] == [1, 2, 2]
    assert "▲" in rows[1]
    assert "by `ann`" not in text
    assert "| `ann` |" in text
    assert "lamina pull hf:org/agent --as NAME" in text
    assert "colour.jsonl" in text
    assert "who made it is not stated" in text


def test_numbers_of_the_metadata_are_those_of_the_exam(store):
    said = {result.dataset_name: result.metric_value
            for result in ModelCard(render(facts_of(store), "hub")).data.eval_results}  # fmt: skip
    scores = examine_stack(store, "second", Silent()).to_json()["scores"]
    assert said == {s["exam"]: pytest.approx(s["value"], abs=1e-6) for s in scores}


def test_equal_records_give_equal_cards_in_whatever_order_they_came(store):
    stack = resolve(store, "second")
    first = render(facts_of(store), "hub")
    assert render(facts_of(store), "hub") == first
    for kind, type_ in ((COST_TYPE, CostEvidence), (SCORES_TYPE, ScoresEvidence)):
        subject = stack.layers[0].digest if kind == COST_TYPE else stack.digest
        old = store.evidence(subject, kind, type_)[0]
        store.put_evidence(
            kind, old.model_copy(update={"created": "1999-01-01T00:00:00+00:00"}),
            store.describe(subject),
        )  # fmt: skip
    assert render(facts_of(store), "hub") == first


def test_a_base_of_the_hub_is_named_with_its_commit(store):
    facts = facts_of(store)
    commit = "0123456789abcdef0123456789abcdef01234567"
    known = replace(facts, base=CardBase(facts.base.config, f"hf:org/base@{commit}"))
    text = render(known, "hub")
    assert ModelCard(text).data.base_model == "org/base"
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "adapter"
    assert f'from_pretrained("org/base", revision="{commit}")' in text
    assert ModelCard(render(known, "gguf")).data.to_dict()["base_model_relation"] == "quantized"


def test_one_licence_throughout_is_the_cards(store):
    facts = facts_of(store)

    def under(base, *layers):
        config = facts.base.config.model_copy(update={"licence": base})
        made = tuple(
            replace(each, config=each.config.model_copy(update={"licence": licence}))
            for each, licence in zip(facts.layers, layers, strict=True)
        )
        changed = replace(facts, base=CardBase(config, ""), layers=made)
        data = ModelCard(render(changed, "hub")).data.to_dict()
        return data.get("license"), data.get("license_name")

    assert under("apache-2.0", "Apache-2.0", "apache-2.0") == ("apache-2.0", None)
    assert under("apache-2.0", "mit", "mit") == ("other", "apache-2.0+mit")
    assert under("apache-2.0", None, "apache-2.0") == ("other", "apache-2.0+not-stated")
    assert under("my-own", "my-own", "my-own") == ("other", "my-own")
    assert under(None, None, None) == (None, None)


@pytest.mark.parametrize("form", FORMS)
def test_the_commands_of_a_card_are_the_programs(store, form):
    card = render(facts_of(store), form)
    lines = list(shown(card))
    assert lines
    assert {line: list(faults(line)) for line in lines} == {line: [] for line in lines}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_every_section(store, form):
    for name in ("second", BASE):
        card = render(facts_of(store, name), form)
        assert headings(tokens_of(card)) == SECTIONS
        assert ModelCard(card).data.library_name


def test_every_export_has_a_card(store, tmp_path):
    for target in ("peft", "vllm", "hf", "mlx"):
        export(store, "second", tmp_path / target, target, Silent())
        text = (tmp_path / target / "README.md").read_text(encoding="utf-8")
        assert resolve(store, "second").digest in text
        assert "largest relative difference of logits" in text


def test_withheld_questions_are_said_to_be(store, tmp_path):
    learned(store, tmp_path, **(FIRST | {"name": "secret", "private": True}))
    text = render(facts_of(store, "secret"), "hub")
    assert "questions withheld" in text
    assert "which colour has number" not in text


def test_licences_and_credit_are_said(store, tmp_path):
    text = render(facts_of(store), "hub")
    assert "- `keep the notices [layer first by ann]`" in text
    assert "- layer second states no licence" in text
    squash(store, "second", name="squashed", rank=None, tolerance=None, reporter=Silent())
    text = render(facts_of(store, "squashed"), "hub")
    top = resolve(store, "second").layers[0].digest
    assert re.search(rf"in it is the work of `ann` \(`first` `@{top[7:19]}`, \d+%\)", text)
    export(store, "squashed", tmp_path / "out", "peft", Silent())
    assert "in it is the work of `ann`" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_an_overridden_gate_is_said(store):
    facts = facts_of(store)
    move = NamingEvidence(created="2026-01-01", name="second", version=3,
                          verdict={"passed": False}, override="<b>we know</b>")  # fmt: skip
    text = render(replace(facts, namings=(move,)), "hub")
    assert "the gate did not pass, overridden: `<b>we know</b>`" in text


# -- hostile words ---------------------------------------------------------------------------------


def poisoned(facts, word):
    """Facts in which every word that others choose is this one."""
    layers = []
    for layer in facts.layers:
        files = tuple(f.model_copy(update={"name": word}) for f in layer.config.data.files)
        data = layer.config.data.model_copy(update={"files": files, "licence": word})
        exams = tuple(e.model_copy(update={"name": word}) for e in layer.config.exams)
        config = LayerConfig.model_construct(
            **{**dict(layer.config), "name": word, "author": word, "licence": word,
               "data": data, "exams": exams}
        )  # fmt: skip
        cost = layer.cost.model_copy(update={"hardware": word})
        credit = Credit(layer=layer.digest, name=word, author=word, licence=word, share=0.5)
        layers.append(replace(layer, config=config, cost=cost, credits=(credit,)))
    cells = [{**c, "exam": word, "stack": c["stack"]} for c in facts.results["cells"]]
    base = facts.base.config.model_copy(update={"licence": word, "family": word, "dtype": word})
    move = NamingEvidence(created=word, name="n", version=1, verdict={}, override=word, author=word)
    return replace(
        facts,
        label=word,
        base=CardBase(base, f"hf:{word}"),
        layers=tuple(layers),
        results={"stacks": facts.results["stacks"], "exams": [word], "cells": cells},
        withheld=frozenset({word}),
        namings=(move,),
        obligations=(word,),
        doubts=(word,),
        parity={"ok": None, "unproved": word},
        where=word,
    )


def check_harmless(card, word):
    """The card's structure is what it always is, and its metadata has no key of `word`'s making."""
    tokens = tokens_of(card)
    assert headings(tokens) == SECTIONS
    assert sum(t.type == "heading_open" for t in tokens) == len(SECTIONS) + 1
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open"}
    assert sum(token.type == "table_open" for token in tokens) == 4
    widths = {}
    for token in tokens:
        if token.type == "table_open":
            widths = {}
        if token.type == "tr_open":
            widths[len(widths)] = 0
        if token.type in ("th_open", "td_open"):
            widths[len(widths) - 1] += 1
        if token.type == "table_close":
            assert len(set(widths.values())) == 1
    data = ModelCard(card).data.to_dict()
    assert set(data) <= {"base_model", "base_model_relation", "library_name", "pipeline_tag",
                         "tags", "license", "license_name", "datasets", "model-index"}  # fmt: skip
    assert data["library_name"] == "peft"
    assert all(isinstance(value, str | list) for value in data.values())
    assert "\x1b" not in card
    assert "\u202e" not in card


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_words_stay_words(store, word):
    for form in ("hub", "peft"):
        check_harmless(render(poisoned(facts_of(store), word), form), word)


@pytest.fixture(scope="module")
def plain_facts(trained):
    return facts_of(trained)


@settings(max_examples=150)
@given(word=st.text(alphabet=st.one_of(st.sampled_from("`|<>[]()*_#-\\\n\r&:@!{}'\"$~ \t"),
                                       st.characters(codec="utf-8")), max_size=40))  # fmt: skip
def test_any_words_stay_words(plain_facts, word):
    check_harmless(render(poisoned(plain_facts, word), "hub"), word)


@given(st.text(max_size=60))
def test_a_code_span_shows_exactly_its_line(text):
    rendered = MarkdownIt("commonmark").parseInline(code(text))[0].children
    line = one_line(text)
    if not line:
        assert [token.type for token in rendered] == ["text"]
        return
    assert [token.type for token in rendered] == ["code_inline"]
    assert rendered[0].content == line
    assert "|" not in cell(text)


def test_commands_quote_what_they_are_given(store):
    facts = replace(poisoned(facts_of(store), "'; rm -rf ~ #"), max_lora_rank=8)
    text = render(facts, "hub")
    assert "vllm serve ''\"'\"'; rm -rf ~ #'" in text
    facts = poisoned(facts_of(store), '"); import os; os.system("id") #')
    assert 'from_pretrained(base, "\\"); import os; os.system(\\"id\\") #")' in render(facts, "hub")
