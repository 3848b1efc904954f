import os
import stat

import pytest

from lamina.core.errors import StoreError, UnknownNameError, UsageError
from lamina.share.keys import KeyRing, parse_public, public_line, verifies


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys")


def nobody(name):
    raise AssertionError(f"asked for the passphrase of {name}")


def test_a_new_key_signs_and_its_owner_is_trusted(ring):
    key = ring.new("anna")
    signer = ring.signer(None, nobody)
    assert signer.id == key.id
    assert verifies(key.public, signer.sign(b"words"), b"words")
    assert not verifies(key.public, signer.sign(b"words"), b"other words")
    assert ring.owned() == {key.id}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_only_its_owner_can_read_a_private_key(ring):
    ring.new("anna")
    (private,) = ring.folder.glob("*.key")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    private.chmod(0o640)
    with pytest.raises(UsageError, match="others can read the private key"):
        ring.signer(None, nobody)


def test_a_sealed_key_needs_its_passphrase(ring):
    key = ring.new("anna", "correct horse")
    (private,) = ring.folder.glob("*.key")
    assert b'"seed"' not in private.read_bytes()
    assert ring.signer(None, lambda name: "correct horse").id == key.id
    with pytest.raises(UsageError, match="passphrase is wrong"):
        ring.signer(None, lambda name: "battery staple")


def test_the_line_of_a_public_key_is_openssh_s(ring, tmp_path):
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    key = ring.new("anna@example.org")
    theirs = load_ssh_public_key(key.line.encode())
    assert theirs.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() in key.line
    assert parse_public(key.line + "\n") == (key.public, "anna@example.org")


def test_somebody_s_key_is_taken_in_and_revoked(ring, tmp_path):
    theirs = KeyRing(tmp_path / "theirs").new("bob")
    assert ring.trust(theirs.line) == ring.trust(theirs.line)
    assert ring.find("bob").id == ring.find(theirs.id[:20]).id == theirs.id
    assert ring.owned() == frozenset()
    with pytest.raises(UsageError, match="is not here"):
        ring.signer("bob", nobody)
    gone = ring.revoke("bob", "retired", "has another one")
    assert gone.revoked.reason == "retired"
    assert ring.revoke("bob", "compromised").revoked.reason == "compromised"
    with pytest.raises(UsageError, match="revoked already"):
        ring.revoke("bob", "retired")
    with pytest.raises(UsageError, match="is revoked"):
        ring.trust(theirs.line)


def test_a_revoked_key_of_one_s_own_signs_no_more(ring):
    ring.new("anna")
    ring.revoke("anna", "compromised")
    with pytest.raises(UnknownNameError, match="no key to sign with"):
        ring.signer(None, nobody)
    with pytest.raises(UsageError, match="is revoked"):
        ring.signer("anna", nobody)


def test_several_keys_have_to_be_told_apart(ring):
    first, second = ring.new("anna"), ring.new("anna")
    with pytest.raises(UsageError, match="several keys"):
        ring.signer(None, nobody)
    with pytest.raises(UsageError, match="could be several"):
        ring.find("anna")
    assert ring.signer(second.id, nobody).id == second.id != first.id


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA anna",
        "ssh-ed25519 not/base64! anna",
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIK9xYDA152k5GNBIeYx/BZF0CYIWd4GqRuespCnZrTqH anna",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK9xYDA152k5GNBIeYx/BZF0CYIWd4GqRuespCnZrQ== anna",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----",
        "ssh-ed25519 " + "A" * 10_000,
        "ssh-ed25519 AAAA a\nssh-ed25519 AAAA b",
    ],
)
def test_what_is_no_public_key_is_refused(ring, line):
    with pytest.raises(UsageError):
        ring.trust(line)
    assert ring.all() == ()


@pytest.mark.parametrize("name", ["", "an na", "\x1b[2Janna", "a" * 65, "аnna", "anna\u202e"])
def test_names_beside_keys_are_plain(ring, tmp_path, name):
    line = public_line(KeyRing(tmp_path / "theirs").new("bob").public, "bob")
    with pytest.raises(UsageError):
        ring.trust(line, name)
    assert ring.all() == ()


def test_a_damaged_file_of_keys_trusts_nobody(ring):
    ring.new("anna")
    ring.path.write_bytes(ring.path.read_bytes()[:-20])
    with pytest.raises(StoreError):
        ring.all()
    ring.path.write_text('{"keys":[{"public":"AAAA","name":"x","added":""}]}')
    with pytest.raises(StoreError):
        ring.all()
    ring.path.write_bytes(b" " * (2 << 20))
    with pytest.raises(StoreError, match="more than"):
        ring.all()


def test_a_private_key_of_another_public_key_is_refused(ring):
    first, second = ring.new("anna"), ring.new("bob")
    one, two = (ring._private_path(key.id) for key in (first, second))
    two.write_bytes(one.read_bytes())
    with pytest.raises(UsageError, match="another public key"):
        ring.signer("bob", nobody)
