"""Names and expressions of strangers: found as PEFT finds them, or not evaluated at all."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.imports.names import Names
from lamina.imports.patterns import compiled, pattern_faults, refusal, selects, value_for

MODULES = [
    f"model.layers.{n}.{part}"
    for n in (0, 1, 10, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]
PLAIN = [
    "q_proj",
    "self_attn.q_proj",
    r"layers\.1\.self_attn\.q_proj",
    "layers.1.self_attn.q_proj",
    r"^model\.layers\.0\..*",
    r"model\.layers\.(0|10)\.mlp\.down_proj",
    r"layers\.[0-9]+\.self_attn\.(?:q|v)_proj",
    r"\d+\.mlp\..*",
    "layers.(0|1).*proj",
    ".*",
    r"layers\.\d{2}\.mlp\.down_proj$",
]


@pytest.mark.parametrize("pattern", PLAIN)
def test_as_peft_matches(pattern):
    other = pytest.importorskip("peft.utils.other")
    table = {pattern: 7, "down_proj": 5}
    assert pattern_faults({"rank_pattern": table}, "rank_pattern", MODULES) == []
    ready = compiled({"rank_pattern": table}, "rank_pattern")
    for module in MODULES:
        theirs = table.get(other.get_pattern_key(table, module), 3)
        assert value_for(ready, module, 3) == theirs


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(?P<n>a)(?P=n)", "(?=a)*", "((a*)b)*", ".*.*.*a", "a{1000}", "[", "(",
     "a**", "a?" * 30 + "b", "(a|aa)" * 30, "(a|b)?" * 30, "(" + "(a|aa)" * 12 + "|b)", "x" * 3000,
     "(.*)*", "\\1", "(?i:a)", "(a)+?", "(a){2,}"],
)  # fmt: skip
def test_expressions_that_could_run_for_hours(pattern):
    assert refusal(pattern)
    assert pattern_faults({"rank_pattern": {pattern: 2}}, "rank_pattern", MODULES)
    assert selects(pattern, MODULES) is None


def test_a_table_has_a_budget():
    """Each expression is quick, all of them on all modules are not."""
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(300)]
    slow = {f".*(a|b|c|d)(e|f|g|h).*{n}": 2 for n in range(100)}
    assert all(refusal(pattern) is None for pattern in slow)
    (fault,) = pattern_faults({"rank_pattern": slow}, "rank_pattern", names)
    assert "too long" in fault
    plain = dict.fromkeys(names, 2)
    assert pattern_faults({"rank_pattern": plain}, "rank_pattern", names) == []


@given(st.text(alphabet="ab.*+?()[]{}|\\d,1^$", max_size=40))
def test_what_is_evaluated_is_quick(pattern):
    if refusal(pattern) is None:
        began = time.process_time()
        re.match(rf"(.*\.)?({pattern})$", "a" * 60 + "!")
        assert time.process_time() - began < 2


def test_targets():
    assert selects(["q_proj"], MODULES) == {m for m in MODULES if m.endswith("q_proj")}
    assert selects(["layers.1.mlp.down_proj"], MODULES) == {"model.layers.1.mlp.down_proj"}
    assert selects("all-linear", MODULES) == set(MODULES)
    assert selects(None, MODULES) == set(MODULES)
    assert selects(r".*\.mlp\.down_proj", MODULES) == {m for m in MODULES if "mlp" in m}
    assert selects(["proj"], MODULES) == set()


def test_names():
    names = Names(["model.layers.0.mlp.up_proj", "model.norm", "lm_head"])
    for text in (
        "model.layers.0.mlp.up_proj",
        "base_model.model.model.layers.0.mlp.up_proj",
        "module._orig_mod.model.layers.0._orig_mod.mlp.up_proj.base_layer",
        "language_model.model.layers.0.mlp.up_proj",
        "layers.0.mlp.up_proj",
    ):
        assert names.find(text.removesuffix(".base_layer")) == "model.layers.0.mlp.up_proj"
    assert names.find("norm") == "model.norm"
    assert names.find("language_model.lm_head") == "lm_head"
    for text in ("vision_tower.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "", "model."):
        assert names.find(text) is None
    assert Names(["model.a", "language_model.a"]).find("llm.a") is None  # either


@given(st.text(max_size=80))
def test_any_name_is_looked_up(text):
    assert Names(["model.layers.0.mlp.up_proj"]).find(text) in (None, "model.layers.0.mlp.up_proj")
