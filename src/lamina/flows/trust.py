"""Signing what is in the store, and asking the trust policy before something is believed."""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import LaminaError, StoreError, TrustError, UsageError
from lamina.core.evidence import SIGNATURE_TYPE, SignatureEvidence
from lamina.core.manifests import (
    LAYER_TYPE,
    STACK_TYPE,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import Name, parse_reference
from lamina.core.plain import line_fault
from lamina.flows.evidence import recorded
from lamina.share.incoming import Incoming
from lamina.share.keys import AskPassphrase, KeyRing
from lamina.share.policy import FILE, Moment, Policy, Subject, Verdict, judge, read_policy
from lamina.share.signature import Finding, check, sign
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.store.refs import bare

KEYS = "keys"
"""Folder of keys inside the config folder."""
SIGNATURES_LIMIT = 200
"""Most signatures of one object that are looked at."""


@dataclass(frozen=True)
class Trust:
    """Whom the user believes: a folder of keys and a policy, read anew at each look."""

    folder: Path

    @property
    def keys(self) -> KeyRing:
        """The keys."""
        return KeyRing(self.folder / KEYS)

    @property
    def policy(self) -> Policy:
        """The policy. Raises UsageError, StoreError for one that cannot be read."""
        return read_policy(self.folder)

    def state(self) -> tuple[object, ...]:
        """Changes when keys or policy do."""
        return changed(self.keys.path), changed(self.folder / FILE)


def changed(path: Path) -> tuple[int, ...]:
    """What is another when a file was written anew; () where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True)
class Known:
    """A stored object with what the policy asks about."""

    subject: Subject
    artifact_type: str
    findings: tuple[Finding, ...]


def sign_object(
    store: Store,
    trust: Trust,
    text: str,
    ask: AskPassphrase,
    *,
    key: str | None = None,
    statement: str | None = None,
) -> dict[str, Any]:
    """Sign what `text` means, and keep the signature as evidence about it.

    Whoever signs vouches for what is there: it is checked to be whole first.
    Raises UnknownNameError, UsageError, StoreError, MissingPartError.
    """
    fault = line_fault(statement) if statement else None
    if fault:
        raise UsageError(f"the statement {fault}", hint="say it on one line")
    digest = object_of(store, text)
    manifest = store.manifest(digest)
    damaged = _damaged(store, digest)
    if damaged:
        raise StoreError(
            f"{text} is not whole, so it is not signed",
            faults=damaged,
            hint="run `lamina verify`, and pull what is missing again",
        )
    signer = trust.keys.signer(key, ask)
    envelope = sign(signer, digest, manifest.artifactType, statement)
    evidence = store.put_evidence(SIGNATURE_TYPE, envelope, bare(store.describe(digest)))
    return {
        "object": digest,
        "kind": manifest.artifactType,
        "signature": evidence.digest,
        "key": signer.id,
        "name": signer.name,
    }


def object_of(store: Store, text: str) -> str:
    """Digest of the manifest that `text` means: a stack's, a layer's (by `@digest`) or a base's.

    A name means its stack; a bare base's name means the base itself. Raises UnknownNameError.
    """
    return store.resolve(parse_reference(text)).digest


def check_stored(store: Store, trust: Trust, text: str) -> dict[str, Any]:
    """Everything that can be said of a stored object without a network: bytes, signatures, policy.

    `ok` is False where bytes are damaged, or where the policy refuses it. Raises UnknownNameError.
    """
    digest = object_of(store, text)
    damaged = _damaged(store, digest)
    known = known_object(store, trust, digest)
    verdict = judge(known.subject, known.findings, trust.policy)
    return {
        "object": digest,
        "kind": known.artifact_type,
        "names": list(known.subject.names),
        "faults": damaged,
        "signatures": [f.model_dump(mode="json") for f in known.findings],
        "layers": [
            {
                "layer": layer,
                "signatures": [f.model_dump(mode="json") for f in signatures(store, trust, layer)],
            }
            for layer in _layers(store, digest)
        ],
        "policy": verdict.model_dump(mode="json"),
        "ok": verdict.allowed and not damaged,
    }


def known_object(store: Store, trust: Trust, digest: str) -> Known:
    """What the policy asks about a stored object. Raises StoreError."""
    manifest = store.manifest(digest)
    configs = [_layer_config(store, layer) for layer in _layers(store, digest)]
    named = [
        str(Name(name, tag))
        for name, tags in store.names().items()
        for tag, target in tags.items()
        if target.digest == digest
    ]
    subject = subject_of(digest, configs, names=named)
    return Known(subject, manifest.artifactType, signatures(store, trust, digest))


def subject_of(
    digest: str, layers: Iterable[LayerConfig], *, names: Iterable[str], source: str | None = None
) -> Subject:
    """What the policy looks at: `layers` are the object's own."""
    configs, names = list(layers), list(names)
    known = [*(n.partition(":")[0] for n in names), *names, *(c.name for c in configs)]
    authors = [c.author for c in configs if c.author]
    return Subject(
        digest=digest,
        names=tuple(dict.fromkeys(known)),
        source=source,
        authors=tuple(dict.fromkeys(authors)),
    )


def signatures(store: Store, trust: Trust, digest: str) -> tuple[Finding, ...]:
    """What the stored signatures of an object prove, oldest first. Raises StoreError."""
    envelopes: list[SignatureEvidence] = []
    for entry in store.referrers(digest, SIGNATURE_TYPE)[:SIGNATURES_LIMIT]:
        with contextlib.suppress(StoreError):  # `lamina verify` tells of it
            envelopes.append(store.config(store.manifest(entry.digest), SignatureEvidence))
    return findings_of(trust, digest, store.manifest(digest).artifactType, envelopes)


def stack_signatures(
    store: Store, trust: Trust, stacks: Collection[str]
) -> dict[str, tuple[Finding, ...]]:
    """What the signatures of many stacks prove, from one pass over the index. Raises StoreError."""
    found = {}
    for digest, records in recorded(store, SIGNATURE_TYPE, stacks).items():
        envelopes = []
        for record in records:
            with contextlib.suppress(UsageError):  # `lamina verify` tells of it
                envelopes.append(SignatureEvidence.parse(record, "a signature"))
        found[digest] = findings_of(trust, digest, STACK_TYPE, envelopes)
    return found


def findings_of(
    trust: Trust, digest: str, artifact_type: str, envelopes: Sequence[SignatureEvidence]
) -> tuple[Finding, ...]:
    """What envelopes prove about an object, wherever they came from."""
    keys = trust.keys.all() if envelopes else ()
    found = [check(each, digest, artifact_type, keys) for each in envelopes[:SIGNATURES_LIMIT]]
    return tuple(dict.fromkeys(found))


def ask_about_incoming(
    trust: Trust, incoming: Incoming, *, names: Iterable[str], source: str
) -> tuple[tuple[Finding, ...], Verdict | None]:
    """What the signatures of something that is on its way prove, and what the policy says of it.

    From manifests, configs and evidence alone. The verdict is None where the policy is not to be
    asked about what is pulled. Raises StoreError, UsageError for a policy that cannot be read.
    """
    root = incoming.root.digest
    envelopes = incoming.readable(root, SIGNATURE_TYPE, SignatureEvidence)
    findings = findings_of(trust, root, incoming.kind, envelopes)
    policy = trust.policy
    if "pull" not in policy.check:
        return findings, None
    configs = [incoming.config(digest, LayerConfig) for digest in incoming.layers]
    subject = subject_of(root, configs, names=names, source=source)
    return findings, judge(subject, findings, policy)


def check_policy(
    trust: Trust, moment: Moment, subject: Subject, findings: Sequence[Finding]
) -> Verdict | None:
    """Ask the policy. None where it is not to be asked at this moment.

    Raises TrustError with the reasons where it refuses.
    """
    policy = trust.policy
    if moment not in policy.check:
        return None
    return insist(trust, judge(subject, findings, policy))


def insist(trust: Trust, verdict: Verdict) -> Verdict:
    """The verdict, if it allows. Raises TrustError with the reasons otherwise."""
    if verdict.allowed:
        return verdict
    rule = f"rule {verdict.rule} of " if verdict.rule else ""
    raise TrustError(
        f"refused by {rule}the trust policy",
        faults=verdict.reasons,
        hint="ask its maker to sign it, take in their key (lamina key trust FILE), "
        f"or change {trust.folder / FILE}",
    )


def verdict_lines(verdict: Verdict | None) -> list[str]:
    """What the policy says, for people, indented as in a preview."""
    if verdict is None:
        return []
    lead = [] if verdict.allowed else ["  REFUSED by the trust policy"]
    return [*lead, *(f"  {text}" for text in (*verdict.reasons, *verdict.warnings))]


def check_stack(store: Store, trust: Trust, stack: ResolvedStack) -> Verdict | None:
    """Ask the policy before a stack answers. A bare base is no stack that anybody would sign.

    A stack that is not stored (that of a layer's digest) has no signatures.
    Raises TrustError, StoreError.
    """
    if "serve" not in trust.policy.check or not stack.layers:
        return None
    if store.has(stack.digest):
        known = known_object(store, trust, stack.digest)
        return check_policy(trust, "serve", known.subject, known.findings)
    subject = subject_of(stack.digest, [layer.config for layer in stack.layers], names=[])
    return check_policy(trust, "serve", subject, ())


def signature_lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for people, one line each, indented as in `lamina show`."""
    return [f"  {_line(finding)}" for finding in findings]


def _line(finding: Finding) -> str:
    who = f"{finding.name} ({short(finding.key)})" if finding.name else f"key {short(finding.key)}"
    said = f": {finding.statement}" if finding.statement else ""
    why = f" ({finding.why})" if finding.why else ""
    when = f", says {finding.created}" if finding.created else ""
    lead = {
        "trusted": f"signed by {who}",
        "unknown": f"signed by an unknown {who}" if not finding.name else f"signed by {who}",
        "revoked": f"signed by revoked {who}",
        "wrong": f"NOT signed by {who}",
    }[finding.state]
    return f"{lead}{when}{why}{said}"


def render_check(found: dict[str, Any]) -> str:
    """`check_stored` for people."""
    lines = [f"@{short(found['object'])}  {found['kind']}"]
    lines += [f"  fault: {fault}" for fault in found["faults"]] or ["  every byte is sound"]
    own = [Finding(**f) for f in found["signatures"]]
    lines += signature_lines(own) or ["  not signed"]
    for layer in found["layers"]:
        theirs = signature_lines([Finding(**f) for f in layer["signatures"]])
        lines += [f"  layer @{short(layer['layer'])}", *(f"  {line}" for line in theirs)]
    policy = found["policy"]
    rule = f"rule {policy['rule']}" if policy["rule"] else "no rule fits, so the default"
    lines.append(f"  policy ({rule}): {'passes' if policy['allowed'] else 'REFUSED'}")
    lines += [f"    {text}" for text in (*policy["reasons"], *policy["warnings"])]
    return "\n".join(lines)


def _damaged(store: Store, digest: str) -> list[str]:
    """Every blob of the object, and of the layers in it, that is missing or damaged."""
    faults: list[str] = []
    seen: set[str] = set()
    waiting = [digest, *_layers(store, digest)]
    for each in waiting:
        try:
            manifest = store.manifest(each)
        except LaminaError as error:
            faults.append(error.message)
            continue
        for blob in (manifest.config, *manifest.layers):
            if blob.digest not in seen and not store.intact(blob.digest):
                faults.append(f"{blob.digest} ({blob.title or blob.mediaType}) is not sound")
            seen.add(blob.digest)
    return faults


def _layers(store: Store, digest: str) -> tuple[str, ...]:
    """A stack's layers; a layer alone for a layer; nothing for a base."""
    manifest: ImageManifest = store.manifest(digest)
    if manifest.artifactType == LAYER_TYPE:
        return (digest,)
    if manifest.artifactType != STACK_TYPE:
        return ()
    items: tuple[StackedLayer, ...] = store.config(manifest, StackConfig).layers
    return tuple(dict.fromkeys(item.layer for item in items))


def _layer_config(store: Store, layer: str) -> LayerConfig:
    return store.config(store.manifest(layer), LayerConfig)
