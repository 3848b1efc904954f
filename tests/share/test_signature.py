import base64
import json

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.evidence import SignatureEvidence
from lamina.core.manifests import LAYER_TYPE, STACK_TYPE
from lamina.share import signature
from lamina.share.keys import KeyRing, Revocation
from lamina.share.signature import PAYLOAD_TYPE, check, encoded, sign, standing

ONE, OTHER = digest_bytes(b"one"), digest_bytes(b"other")


@pytest.fixture
def ring(tmp_path):
    ring = KeyRing(tmp_path / "keys")
    ring.new("anna")
    return ring


@pytest.fixture
def signed(ring):
    return sign(ring.signer(None, str), ONE, STACK_TYPE, "read by me")


def changed(envelope, **fields):
    payload = json.loads(base64.b64decode(envelope.payload)) | fields
    text = base64.b64encode(json.dumps(payload).encode()).decode()
    return envelope.model_copy(update={"payload": text})


def test_pae_is_that_of_the_specification():
    # the example of github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    assert encoded("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signature_is_seen_through_json(ring, signed):
    again = SignatureEvidence.parse(signed.to_bytes(), "it")
    found = check(again, ONE, STACK_TYPE, ring.all())
    assert (found.state, found.name, found.statement) == ("trusted", "anna", "read by me")


def test_without_the_key_it_is_right_but_unknown(signed):
    assert check(signed, ONE, STACK_TYPE, ()).state == "unknown"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda e: changed(e, digest=OTHER), "made for another object"),
        (lambda e: changed(e, statement="never said"), "does not fit the statement"),
        (lambda e: changed(e, created="2001-01-01T00:00:00+00:00"), "does not fit"),
        (lambda e: changed(e, created="2001-01-01 \x1b[2J"), "is not valid"),
        (lambda e: changed(e, more=1), "unknown key"),
        (lambda e: changed(e, key=OTHER), "names another key"),
        (lambda e: e.model_copy(update={"payload": "%%%"}), "not base64"),
        (lambda e: e.model_copy(update={"payload": base64.b64encode(b"[").decode()}), "JSON"),
        (lambda e: e.model_copy(update={"payloadType": "text/plain"}), "a statement of type"),
        (
            lambda e: e.model_copy(
                update={"signatures": (e.signatures[0].model_copy(update={"sig": "AAAA"}),)}
            ),
            "no signature of 64 bytes",
        ),
        (
            lambda e: e.model_copy(
                update={"signatures": (e.signatures[0].model_copy(update={"keyid": OTHER}),)}
            ),
            "different keys",
        ),
    ],
)
def test_what_was_changed_proves_nothing(ring, signed, make, why):
    found = check(make(signed), ONE, STACK_TYPE, ring.all())
    assert found.state == "wrong"
    assert why in found.why


def test_a_signature_of_a_layer_is_none_of_a_stack(ring, signed):
    assert check(signed, ONE, LAYER_TYPE, ring.all()).state == "wrong"


def test_the_same_bytes_signed_as_another_type_prove_nothing(ring):
    signer = ring.signer(None, str)
    envelope = sign(signer, ONE, STACK_TYPE)
    body = base64.b64decode(envelope.payload)
    for message in (body, encoded("text/plain", body)):
        mark = envelope.signatures[0].model_copy(
            update={"sig": base64.b64encode(signer.sign(message)).decode()}
        )
        swapped = envelope.model_copy(update={"signatures": (mark,)})
        assert check(swapped, ONE, STACK_TYPE, ring.all()).state == "wrong"


def test_somebody_else_s_key_in_the_statement_proves_nothing(ring, tmp_path):
    mallory = KeyRing(tmp_path / "mallory")
    mallory.new("anna")
    envelope = sign(mallory.signer(None, str), ONE, STACK_TYPE)
    assert check(envelope, ONE, STACK_TYPE, ring.all()).state == "unknown"
    anna = ring.all()[0]
    forged = changed(envelope, key=anna.id, public=anna.public)
    mark = forged.signatures[0].model_copy(update={"keyid": anna.id})
    forged = forged.model_copy(update={"signatures": (mark,)})
    assert check(forged, ONE, STACK_TYPE, ring.all()).state == "wrong"


@pytest.mark.parametrize(
    ("reason", "created", "state"),
    [
        ("compromised", "2020-01-01T00:00:00+00:00", "revoked"),
        ("compromised", "2030-01-01T00:00:00+00:00", "revoked"),
        ("retired", "2020-01-01T00:00:00+00:00", "trusted"),
        ("retired", "2025-05-05T00:00:00+00:00", "revoked"),
        ("retired", "2030-01-01T00:00:00+00:00", "revoked"),
    ],
)
def test_what_a_revoked_key_s_signatures_are_worth(ring, reason, created, state):
    revoked = Revocation(at="2025-05-05T00:00:00+00:00", reason=reason)
    key = ring.all()[0].model_copy(update={"revoked": revoked})
    found, why = standing(key, created)
    assert found == state
    assert why


def test_a_statement_is_canonical_and_names_its_key(ring, signed):
    body = base64.b64decode(signed.payload)
    assert signature.Statement.parse(body, "it").to_bytes() == body
    assert signed.payloadType == PAYLOAD_TYPE
