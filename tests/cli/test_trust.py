"""Keys, signatures and the policy, as somebody at a shell meets them."""

import json

import pytest

from lamina.core.errors import StoreError
from lamina.core.evidence import NAMING_TYPE, NamingEvidence
from lamina.core.manifests import ImageManifest
from lamina.store.layout import Store
from tests.cli.program import Program, config_of
from tests.store import make


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    store = Store.open(tmp_path / "home")
    make.put_base(store)
    store.move("support", make.put_stack(store, "one", "two"), expected=None)
    return Program(store.root, monkeypatch, capsys)


def test_a_key_is_made_listed_and_given_to_others(program, tmp_path):
    program("key", "new").refused("the key needs a name")
    made = program("key", "new", "--name", "anna@example.org", "--json").done().json
    assert made["own"]
    line = program("key", "export").done().out
    assert line.strip() == made["line"]
    assert program("key", "list", "--json").json["keys"] == [made]
    (tmp_path / "anna.pub").write_text(line)
    other = Program(tmp_path / "other", program._monkeypatch, program._capsys)
    other("key", "trust", tmp_path / "anna.pub", "--name", "Anna").done()
    (known,) = other("key", "list", "--json").json["keys"]
    assert (known["id"], known["name"], known["own"]) == (made["id"], "Anna", False)
    other("key", "export").refused("0 keys of your own")
    other("sign", "support").refused()


def test_sign_verify_revoke(program):
    program("sign", "support").refused("lamina key new")
    program("key", "new", LAMINA_AUTHOR="anna").done()
    program("sign", "support", "--statement", "read by me").done()
    assert "signed by anna" in program("verify", "support").done().out
    assert "signed by anna" in program("show", "support").done().out
    assert "signed by anna" in program("log", "support").done().out
    assert program("show", "support", "--json").json["signatures"][0]["state"] == "trusted"
    config = config_of(program.home)
    (config / "policy.toml").write_text('unsigned = "refuse"\n')
    program("verify", "support").done()
    program("key", "revoke", "anna", "--reason", "lost the laptop").done()
    refused = program("verify", "support")
    assert refused.code == 1
    assert "REFUSED" in refused.out
    assert not program("verify", "support", "--json").json["ok"]
    assert "compromised" in program("key", "list").done().out


def test_verify_of_a_damaged_manifest_is_a_no(program):
    store = Store.open(program.home)
    digest = store.names()["support"]["latest"].digest
    path = store.path(digest)
    path.write_bytes(path.read_bytes().replace(b"lamina", b"animal", 1))
    program("verify", "support").refused("don't match their digest", code=1)


def test_a_passphrase_comes_from_a_file_and_never_from_an_argument(program, tmp_path):
    (tmp_path / "words").write_text("correct horse\n")
    (tmp_path / "others").write_text("battery staple\n")
    (tmp_path / "empty").write_text("\n")
    program("key", "new", "--name", "a", "--passphrase-file", tmp_path / "empty").refused("empty")
    program("key", "new", "--name", "anna", "--passphrase-file", tmp_path / "words").done()
    program("sign", "support", "--passphrase-file", tmp_path / "words").done()
    program("sign", "support", "--passphrase-file", tmp_path / "others").refused("is wrong")
    with (tmp_path / "empty").open() as nobody:
        program("sign", "support", stdin=nobody).refused("there is nobody to ask")


def test_the_policy_is_shown_and_its_faults_are_named(program):
    assert "(not there: the default)" in program("key", "policy").done().out
    config = config_of(program.home)
    config.mkdir(exist_ok=True)
    (config / "policy.toml").write_text('[[rules]]\nname = "support*"\nsigners = ["anna"]\n')
    shown = program("key", "policy").done().out
    assert "rule 1: name support*: signed by anna; unsigned: refuse" in shown
    assert program("key", "policy", "--json").json["rules"][0]["signers"] == ["anna"]
    (config / "policy.toml").write_text("unsigned = 3\n")
    program("key", "policy").refused("policy.toml is not valid", "unsigned")
    program("verify", "support").refused("policy.toml is not valid")


def test_what_strangers_wrote_is_no_order_to_the_terminal(program):
    """Evidence that lamina would not have written, in a store that somebody else made."""
    store = Store.open(program.home)
    stack = store.names()["support"]["v1"]
    evil = "anna\x1b]52;c;ZXZpbA==\x07\x9b2J\u202egnp.exe"
    evidence = NamingEvidence(
        created="2026-01-01T00:00:00Z",
        name="support",
        version=1,
        verdict={"passed": True},
        author=evil,
        override=evil,
    )
    with pytest.raises(StoreError, match="control character"):
        store.put_evidence(NAMING_TYPE, evidence, stack)
    config = store.put_bytes(evidence.to_bytes(), NAMING_TYPE + ".config+json")
    manifest = ImageManifest(artifactType=NAMING_TYPE, config=config, layers=(), subject=stack)
    store.add_root(store.put_manifest(manifest))
    for words in (("log", "support"), ("log", "support", "--json")):
        out = program(*words).done().out
        assert "anna" in out
        assert not set(out) & set("\x1b\x07\x9b\u202e"), out
    assert json.loads(program("log", "--json").out)["moves"][0]["author"] == evil


def test_names_with_control_characters_are_refused_where_they_are_given(program):
    program("sign", "support", "--statement", "a\nb").refused("control character")
    program("key", "new", LAMINA_AUTHOR="an\x1b[2Jna").refused("LAMINA_AUTHOR has a control")
