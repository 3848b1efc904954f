"""What fuzzing begins with: one right thing of each kind."""

import base64
import json

from safetensors.numpy import save

from lamina.core.digest import digest_bytes
from lamina.core.evidence import ScoresEvidence
from lamina.core.manifests import (
    JSON_TYPE,
    LAYER_TYPE,
    STACK_TYPE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.recipe import Recipe
from lamina.share.keys import KnownKey, Signer, public_line
from lamina.share.signature import sign

ONE = digest_bytes(b"one")
_BLOB = Descriptor(
    mediaType=JSON_TYPE,
    digest=ONE,
    size=3,
    annotations={"org.opencontainers.image.title": "adapter_config.json"},
)
MANIFESTS = tuple(
    value.to_bytes()
    for value in (
        ImageManifest(artifactType=LAYER_TYPE, config=_BLOB, layers=(_BLOB,), subject=_BLOB),
        ImageIndex(manifests=(_BLOB,)),
        StackConfig(base=ONE, layers=(StackedLayer(layer=ONE, weight=0.5),)),
        LayerConfig(
            name="support",
            base=ONE,
            parents=(),
            rank=4,
            alpha=8.0,
            scaling="lora",
            modules=("m.q_proj",),
            parameters=10,
            recipe=Recipe(),
        ),
        ScoresEvidence(
            created="2026-01-01T00:00:00+00:00",
            exam_digest=ONE,
            scorer="exact",
            max_new_tokens=8,
            engine=ONE,
            items=((1.0, 1.0, "yes"),),
        ),
    )
)
ADAPTER_CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).encode()


def _weights() -> bytes:
    import numpy

    names = ("lora_A.weight", "lora_B.weight")
    shapes = ((2, 4), (3, 2))
    return save(
        {
            f"base_model.model.m.q_proj.{name}": numpy.ones(shape, numpy.float16)
            for name, shape in zip(names, shapes, strict=True)
        }
    )


def _apart(data: bytes) -> bytes:
    """Header, an empty line, the rest: as `header.read` puts a length before."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length].rstrip() + b"\n\n" + data[8 + length :]


HEADERS = (_weights(), ADAPTER_CONFIG.ljust(300, b"\0") + _weights(), _apart(_weights()))
NAMES = (b"support:v3", b"@abcdef0123", b"sha256:" + b"a" * 64, b"legal-de.small", b"..", b"a/../b")


def _key() -> tuple[KnownKey, Signer]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    key = KnownKey(public=public, name="anna", added="")
    return key, Signer(key.id, public, "anna", private)


KEY, _SIGNER = _key()
PUBLIC = public_line(KEY.public, "anna").encode()
_ENVELOPE = sign(_SIGNER, ONE, STACK_TYPE, "said")
ENVELOPE = _ENVELOPE.to_bytes()
STATEMENT = base64.b64decode(_ENVELOPE.payload)
TEMPLATES = (
    b"{% for m in messages %}{{ m.role ~ m['content']|trim }}{% endfor %}",
    b"{% macro f(n) %}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(3) }}",
    b"{% set ns = namespace(a=1) %}{% for i in range(9) %}{% set ns.a = ns.a * 2 %}{% endfor %}",
    bytes(range(60)),
)
PIECES = (
    *("{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "for m in messages", "endfor", "if x", "endif"),
    *("else", "set x = ", "set ns.v = ", "namespace(v=1)", "ns.v", "macro f(n)", "endmacro"),
    *("f(", ")", "[", "]", "(", "{", "}", ", ", ".", "|", "~", "+", "*", "**", "%", "-", "/"),
    *("messages", "m", "x", "loop", "range(99)", "999999999", "3", "'a'", "'%s'", "''", "None"),
    *("join", "list", "map('upper')", "replace", "center", "format", "tojson", "sort", "batch(2)"),
    *("__class__", "attr('x')", ".join(", ".split(", ".format(", "[::2]", "in ", "is ", "not "),
    *("break", "continue", "call f()", "endcall", "filter upper", "endfilter", "recursive"),
    *("generation", "endgeneration", "block b", "endblock", "self.b()", "dict(a=x)", "\n", " "),
)
