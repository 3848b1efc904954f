"""Places: what parses, what doesn't, and that nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import UsageError
from lamina.share.reference import HubRef, RegistryRef, parse_place

WORD = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
PATH = st.lists(WORD, min_size=1, max_size=4).map("/".join)
HOST = st.sampled_from(["ghcr.io", "localhost:5000", "127.0.0.1", "[::1]:5000", "a-b.example:1"])
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(HOST, PATH, TAG)
def test_a_tag_comes_back_as_it_was(host, path, tag):
    ref = parse_place(f"oci://{host}/{path}:{tag}")
    assert ref == RegistryRef(host, path, tag)
    assert parse_place(str(ref)) == ref


@given(HOST, PATH, st.binary(min_size=32, max_size=32))
def test_a_digest_comes_back_as_it_was(host, path, data):
    ref = parse_place(f"oci://{host}/{path}@sha256:{data.hex()}")
    assert ref.tag is None
    assert ref.target == f"sha256:{data.hex()}"
    assert parse_place(str(ref)) == ref


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text):
    for prefix in ("oci://", "oci://h/", "hf:", ""):
        try:
            ref = parse_place(prefix + text)
        except UsageError:
            continue
        assert parse_place(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "oci://",
        "oci://host",
        "oci://host/",
        "oci://host/Upper",
        "oci://host/a//b",
        "oci://host/../etc",
        "oci://host/a/./b",
        "oci://ho st/a",
        "oci://user:pass@host/a",
        "oci://host:0/a",
        "oci://host:99999/a",
        "oci://[::zz]/a",
        "oci://host/a:",
        "oci://host/a:tag:tag",
        "oci://host/a:-tag",
        "oci://host/a@sha256:12",
        "oci://host/a@sha512:" + "0" * 128,
        "oci://host/a:tag@sha256:" + "0" * 64,
        "oci://host/" + "a" * 300,
        "oci://host/a?x=1",
        "oci://host/a#b",
        "oci://host\n/a",
        "oci://hоst/a",  # a Cyrillic о
        "http://host/a",
        "ghcr.io/me/support",
        "hf:org",
        "hf:../etc/passwd",
        "hf:org/name@",
    ],
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(UsageError):
        parse_place(text)


def test_all_faults_are_said_at_once():
    with pytest.raises(UsageError) as refused:
        parse_place("oci://ho st/UP:-t")
    assert len(refused.value.faults) == 3


def test_a_tag_is_latest_where_none_is_given():
    assert parse_place("oci://ghcr.io/me/support").target == "latest"
    assert parse_place("hf:me/support@v1") == HubRef("me/support", "v1")


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("10.0.0.1", False),
        ("[::2]", False),
        ("ghcr.io", False),
    ],
)
def test_only_this_machine_is_this_machine(host, here):
    assert RegistryRef(host, "a").loopback is here
