"""Signatures: a person says of an object, by its digest, that it is theirs to vouch for.

What is signed is a statement in a DSSE envelope: the bytes
`"DSSEv1" SP len(type) SP type SP len(payload) SP payload`, which name what kind of statement it is,
so that a signature made for anything else can never be taken for one of ours. A manifest names all
that belongs to it by digest: who signs a stack's manifest signs its layers, weights and order.

Times in statements are claims of the signer. See `standing` for what follows for revoked keys.
"""

import base64
import binascii
from typing import Annotated, Literal

from pydantic import Field

from lamina.core.digest import Digest, short
from lamina.core.errors import StoreError
from lamina.core.evidence import EnvelopeSignature, SignatureEvidence
from lamina.core.plain import shown_in_line
from lamina.core.values import Line, Value
from lamina.share.keys import KnownKey, Signer, now, verifies
from lamina.store.strict import parse_strictly

PAYLOAD_TYPE = "application/vnd.lamina.statement.v1+json"
SIGNATURE_BYTES = 64

State = Literal["trusted", "unknown", "revoked", "wrong"]
"""trusted: right, by a known key. unknown: right, by a key that nobody here decided to trust.
revoked: right, but the key does not count any more. wrong: it proves nothing about this object."""


class Statement(Value):
    """What a signer says."""

    digest: Digest
    """The object: its manifest's digest."""
    artifact_type: Annotated[str, Field(max_length=200)]
    key: Digest
    """The key's id."""
    public: Annotated[str, Field(max_length=100)]
    """The key itself, so that anybody can see whether the signature is right."""
    created: Annotated[
        str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", max_length=40)
    ]
    """UTC, ISO 8601, as the signer claims."""
    statement: Line | None = None
    """In the signer's words."""


class Finding(Value):
    """What a signature proves here and now."""

    state: State
    key: Digest
    """Id of the key that it names."""
    name: str | None = None
    """Whose key it is, as this machine knows it."""
    created: str | None = None
    statement: str | None = None
    why: str = ""
    """What is wrong, or what to know."""


def encoded(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(
    signer: Signer, digest: str, artifact_type: str, statement: str | None = None
) -> SignatureEvidence:
    """A signed statement about an object."""
    said = Statement(
        digest=digest,
        artifact_type=artifact_type,
        key=signer.id,
        public=signer.public,
        created=now(),
        statement=statement,
    ).to_bytes()
    signature = signer.sign(encoded(PAYLOAD_TYPE, said))
    return SignatureEvidence(
        payloadType=PAYLOAD_TYPE,
        payload=base64.b64encode(said).decode(),
        signatures=(EnvelopeSignature(keyid=signer.id, sig=base64.b64encode(signature).decode()),),
    )


def check(
    envelope: SignatureEvidence, digest: str, artifact_type: str, keys: tuple[KnownKey, ...]
) -> Finding:
    """What `envelope` proves about the object `digest`. Never raises for what a stranger wrote."""
    claimed = envelope.signatures[0].keyid
    statement = _statement(envelope)
    if isinstance(statement, str):
        return Finding(state="wrong", key=claimed, why=statement)
    known = next((key for key in keys if key.id == statement.key), None)
    wrong = _wrong(envelope, statement, digest, artifact_type)
    if wrong:
        return Finding(state="wrong", key=claimed, created=statement.created, why=wrong)
    state, why = standing(known, statement.created)
    return Finding(
        state=state,
        key=claimed,
        name=known.name if known else None,
        created=statement.created,
        statement=statement.statement,
        why=why,
    )


def standing(key: KnownKey | None, created: str) -> tuple[State, str]:
    """Whether a right signature by this key counts, which claims to be of the time `created`.

    A compromised key counts never again, whatever times its signatures claim: whoever holds it can
    write any time into a statement. Of a retired key, which its owner alone held, those count that
    claim a time before it was retired.
    """
    if key is None:
        return "unknown", "nobody here decided to trust this key"
    if key.revoked is None:
        return "trusted", ""
    if key.revoked.reason == "compromised":
        return (
            "revoked",
            f"the key is compromised (revoked {key.revoked.at}): no signature by it counts",
        )
    if created < key.revoked.at:
        return "trusted", f"signed before the key was retired ({key.revoked.at})"
    return "revoked", f"signed after the key was retired ({key.revoked.at})"


def _statement(envelope: SignatureEvidence) -> Statement | str:
    """The statement, or why it cannot be read."""
    if envelope.payloadType != PAYLOAD_TYPE:
        return f"a statement of type {shown_in_line(envelope.payloadType)}"
    payload = _bytes(envelope.payload)
    if payload is None:
        return "its payload is not base64"
    try:
        return parse_strictly(Statement, payload, "its statement")
    except StoreError as error:
        return "; ".join((error.message, *error.faults))


def _wrong(
    envelope: SignatureEvidence, statement: Statement, digest: str, artifact_type: str
) -> str | None:
    """Why a readable statement proves nothing about the object; None where it does."""
    mark = envelope.signatures[0]
    signature = _bytes(mark.sig)
    raw = _bytes(statement.public)
    if (
        raw is None
        or len(raw) != 32
        or KnownKey(public=statement.public, name="", added="").id != (statement.key)
    ):
        return "it names another key than the one it carries"
    if mark.keyid != statement.key:
        return "its envelope and its statement name different keys"
    if statement.digest != digest:
        return f"it was made for another object ({short(statement.digest)})"
    if statement.artifact_type != artifact_type:
        return f"it was made for a {shown_in_line(statement.artifact_type)}"
    payload = _bytes(envelope.payload) or b""
    if signature is None or len(signature) != SIGNATURE_BYTES:
        return "it has no signature of 64 bytes"
    if not verifies(statement.public, signature, encoded(PAYLOAD_TYPE, payload)):
        return "the signature does not fit the statement: one of them was changed"
    return None


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
