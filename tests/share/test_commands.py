"""`lamina push` and `lamina pull` as they are typed."""

import io
import shutil

import pytest

from lamina.core.names import Name
from lamina.store.layout import Store
from tests.cli.program import Program
from tests.share.conftest import config_with
from tests.share.registries import running

pytestmark = pytest.mark.slow  # whole verbs, again and again


@pytest.fixture
def other(tmp_path, monkeypatch, capsys):
    """The program with another store, empty yet."""
    return Program(tmp_path / "other", monkeypatch, capsys)


def test_push_and_pull_print_one_document(shared, other, place):
    pushed = shared("push", "times", place, "--with-base", "--json").done().json
    assert pushed["pushed"] == place
    again = shared("push", "times", place, "--with-base", "--json").done()
    assert again.json["sent"] == 0
    shown = other("pull", place, "--dry-run", "--json").done().json
    assert shown["pulled"] is None
    assert [layer["name"] for layer in shown["preview"]["layers"]] == ["sums", "times"]
    assert shown["preview"]["layers"][0]["author"] == "Zoë"
    pulled = other("pull", place, "--as", "theirs", "--json").done()
    assert pulled.json["stack"] == pushed["digest"]
    assert "layer sums" in pulled.err
    listed = other("list", "--json").done().json
    assert [stack["name"] for stack in listed["stacks"]] == ["theirs"]
    assert other("log", "theirs", "--json").done().json
    other("verify").done()


def test_for_people(shared, other, place):
    said = shared("push", "times", place).done()
    assert "is @" in said.out
    assert "--with-base" in said.err  # the base came from a folder
    shared("push", "times", place, "--with-base").done()
    shown = other("pull", place, "--dry-run").done()
    assert "layer times" in shown.out
    assert "claimed: " in shown.out
    assert "theirs:v1 is @" in other("pull", place, "--as", "theirs").done().out


def test_a_name_comes_from_the_place(shared, other, registry):
    place = registry.place("people/zoe")
    shared("push", "sums", place, "--with-base").done()
    other("pull", place).done()
    assert "zoe" in Store.open(other.home).names()


def test_a_name_that_exists_moves_through_the_gate(program, other, registry):
    """Pulling what is worse on an inherited exam is refused, kept, and may be overridden."""
    place = registry.place("gate/move")
    program("push", "times", place, "--with-base").done()
    other("pull", place, "--as", "mine").done()
    program("push", "sums", place, "--force").done()
    before = Store.open(other.home).resolve(Name("mine")).digest
    pulled = other("pull", place, "--as", "mine", "--json")
    pulled.refused("was not moved", "--accept-regression", code=1)
    assert Store.open(other.home).resolve(Name("mine")).digest == before
    why = ("--accept-regression", "it is a test")
    again = other("pull", place, "--as", "mine", "--json", *why).done().json
    assert again["name"] == "mine:v2"
    moves = other("log", "mine", "--json").done().json["moves"]
    assert moves[0]["override"] == "it is a test"
    other("verify").done()


def test_on_a_terminal_it_asks(shared, other, place, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shared("push", "sums", place, "--with-base").done()
    other("pull", place, stdin=Terminal("n\n")).refused("nothing was pulled", code=1)
    assert not Store.open(other.home).entries()
    other("pull", place, stdin=Terminal("y\n")).done()
    other("pull", place, "--yes", stdin=Terminal("")).done()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("push", "nothing", "oci://127.0.0.1:1/a/b"), ("nothing is called",)),
        (("push", "sums", "ghcr.io/a/b"), ("no place", "oci://")),
        (("push", "sums", "oci://ghcr.io/A"), ("is not a repository",)),
        (("pull", "oci://127.0.0.1:1/a/b"), ("no answer from 127.0.0.1:1", "try again")),
        (("pull", "oci://127.0.0.1:1/a/b", "--ca-file", "/no/such"), ("there is no file",)),
        (("pull", "oci://127.0.0.1:1/a/b", "--as", "NO"), ("is not a name",)),
    ],
)
def test_what_cannot_be_done_is_said(program, words, texts, monkeypatch):
    from lamina.share import wire

    monkeypatch.setattr(wire.Patience, "pause", lambda *_: None)
    program(*words).refused(*texts)


@pytest.mark.skipif(shutil.which("htpasswd") is None, reason="htpasswd is not installed")
def test_credentials_are_found_where_docker_keeps_them(shared, tmp_path):
    with running(tmp_path / "guarded", users={"ann": "s"}) as guarded:
        folder = tmp_path / "docker"
        folder.mkdir()
        shared("push", "sums", guarded.place(), DOCKER_CONFIG=str(folder)).refused("docker login")
        config_with(folder / "config.json", guarded.host, "ann:s")
        shared("push", "sums", guarded.place(), DOCKER_CONFIG=str(folder)).done()
        elsewhere = config_with(tmp_path / "auth.json", guarded.host, "ann:s")
        place = guarded.place("lamina/second")
        shared("push", "sums", place, REGISTRY_AUTH_FILE=str(elsewhere), DOCKER_CONFIG="/no").done()


def test_the_trust_policy_is_asked_before_anything_lands(shared, other, registry, tmp_path):
    place = registry.place("trust/policy")
    theirs = {"LAMINA_CONFIG": str(tmp_path / "theirs")}
    mine = {"LAMINA_CONFIG": str(tmp_path / "mine")}
    shared("push", "sums", place, "--with-base").done()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "policy.toml").write_text('unsigned = "refuse"\n')
    shown = other("pull", place, "--dry-run", **mine).done()
    assert "not signed" in shown.out
    assert "REFUSED" in shown.out
    other("pull", place, **mine).refused("refused by", "lamina key trust", code=1)
    assert not Store.open(other.home).entries()
    unasked = other("pull", place, "--dry-run", "--json", **theirs).done().json["preview"]
    assert unasked["policy"]["allowed"]
    assert unasked["signatures"] == []


def test_a_signature_travels_and_is_believed_only_from_who_is_trusted(
    program, other, registry, tmp_path
):
    place = registry.place("trust/signed")
    theirs = {"LAMINA_CONFIG": str(tmp_path / "theirs")}
    mine = {"LAMINA_CONFIG": str(tmp_path / "mine")}
    program("key", "new", "--name", "ann", **theirs).done()
    program("sign", "sums", **theirs).done()
    program("push", "sums", place, "--with-base", **theirs).done()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "policy.toml").write_text('unsigned = "refuse"\n')
    other("pull", place, **mine).refused("refused by", code=1)
    public = tmp_path / "ann.pub"
    public.write_text(program("key", "export", **theirs).done().out)
    other("key", "trust", str(public), **mine).done()
    pulled = other("pull", place, "--as", "signed", "--json", **mine).done()
    assert "signed by ann" in pulled.err
    assert pulled.json["preview"]["policy"]["signed_by"] == ["ann"]
    other("verify", "signed", **mine).done()


def test_from_python(made, registry, tmp_path, monkeypatch):
    import lamina

    monkeypatch.setenv("LAMINA_CONFIG", str(tmp_path / "config"))
    place = registry.place("from/python")
    sent = lamina.load("times", home=made).push(place, with_base=True)
    stack = lamina.pull(place, name="theirs", home=tmp_path / "home")
    assert stack.digest == sent["digest"]
    assert stack.name == "theirs:v1"
