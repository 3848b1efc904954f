"""Signature envelopes and their statements, as bytes from a stranger."""

import base64

import atheris

with atheris.instrument_imports(include=["lamina"]):
    from lamina.core.digest import digest_bytes
    from lamina.core.evidence import EnvelopeSignature, SignatureEvidence
    from lamina.core.manifests import STACK_TYPE
    from lamina.share.signature import PAYLOAD_TYPE, check
    from lamina.store.strict import parse_strictly

from tests.fuzz.driver import fuzz
from tests.fuzz.seeds import ENVELOPE, KEY, STATEMENT

ONE = digest_bytes(b"one")
SIGNED = parse_strictly(SignatureEvidence, ENVELOPE, "it")


def read(data: bytes) -> None:
    """Whatever is said, nothing but the one right envelope counts."""
    for payload, sig in ((data, data[:64]), (data[64:], data[:64]), (STATEMENT, data)):
        found = check(
            SignatureEvidence(
                payloadType=PAYLOAD_TYPE,
                payload=base64.b64encode(payload).decode(),
                signatures=(
                    EnvelopeSignature(keyid=KEY.id, sig=base64.b64encode(sig[:64]).decode()),
                ),
            ),
            ONE,
            STACK_TYPE,
            (KEY,),
        )
        right = SIGNED.signatures[0].sig == base64.b64encode(sig[:64]).decode()
        assert found.state == "wrong" or (right and payload == STATEMENT)
    envelope = parse_strictly(SignatureEvidence, data, "it")
    found = check(envelope, ONE, STACK_TYPE, (KEY,))
    assert found.state in ("wrong", "unknown") or (base64.b64decode(envelope.payload) == STATEMENT)


if __name__ == "__main__":
    fuzz(read, (ENVELOPE, STATEMENT))
