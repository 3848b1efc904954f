"""The trust policy: who may sign what, and what happens to what they did not sign. Pure.

`policy.toml`:

```toml
unsigned = "warn"              # allow, warn or refuse: where no rule fits
check = ["pull", "accept"]     # also "serve": before a stack answers

[[rules]]                      # the first rule that fits decides
name = "support*"              # names it comes or lands under, and its layers'
source = "oci://ghcr.io/acme/*"
author = "Anna*"               # authors named in its layers: a claim
signers = ["anna", "sha256:…"] # names or ids of keys; left out: every trusted key
unsigned = "refuse"
```

All patterns of a rule must fit (`*`, `?`, `[…]` as in a shell, case counts). An object is signed
where a signature by one of the signers is right. Signatures that prove nothing are told, but refuse
nothing: anybody can attach one to anything.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lamina.core.digest import short
from lamina.core.errors import StoreError, UsageError
from lamina.core.values import Value
from lamina.share.signature import Finding

FILE = "policy.toml"
MAX_FILE_BYTES = 1 << 20

Unsigned = Literal["allow", "warn", "refuse"]
Moment = Literal["pull", "accept", "serve"]
"""When the policy is asked: before something lands, before a name moves to a proposed layer, and
before a stack is served."""
Pattern = Annotated[str, Field(min_length=1, max_length=300)]


class Rule(Value):
    """What holds for some objects. Without a pattern it fits all."""

    name: Pattern | None = None
    source: Pattern | None = None
    author: Pattern | None = None
    signers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names or ids of keys that may sign; None: every trusted key."""
    unsigned: Unsigned = "refuse"

    def fits(self, subject: "Subject") -> bool:
        """Whether every pattern fits."""
        return (
            _fits(self.name, subject.names)
            and _fits(self.source, () if subject.source is None else (subject.source,))
            and _fits(self.author, subject.authors)
        )


class Policy(Value):
    """Whom to believe."""

    unsigned: Unsigned = "warn"
    check: tuple[Moment, ...] = ("pull", "accept")
    rules: tuple[Rule, ...] = ()


class Verdict(Value):
    """What the policy says of an object."""

    allowed: bool
    rule: int | None = None
    """Which rule decided, from 1; None where none fitted."""
    signed_by: tuple[str, ...] = ()
    """Names of those who may sign it and did."""
    reasons: tuple[str, ...] = ()
    """Why it is refused, one sentence each; empty where it is not."""
    warnings: tuple[str, ...] = ()
    """What to know although it is not refused."""


@dataclass(frozen=True)
class Subject:
    """What the policy looks at."""

    digest: str
    names: tuple[str, ...] = ()
    """Under which it comes, lands or is known, and its layers' names; none of them a proof."""
    source: str | None = None
    """Where it comes from, as the user gave it; None for what is in the store."""
    authors: tuple[str, ...] = ()
    """Named in its layers: claims."""


def judge(subject: Subject, findings: Sequence[Finding], policy: Policy) -> Verdict:
    """Whether the object may land. Pure: equal arguments, equal verdicts."""
    number, rule = _deciding(subject, policy)
    good = [f for f in findings if f.state == "trusted"]
    counted = [f for f in good if _may_sign(f, rule)]
    told = [_told(f) for f in findings if f not in counted and f not in good]
    told += [
        f"signed by {f.name}, who is not among those who may sign it"
        for f in good
        if f not in counted
    ]
    told += [f"{f.name}'s signature: {f.why}" for f in counted if f.why]
    if counted:
        names = tuple(dict.fromkeys(f.name or short(f.key) for f in counted))
        return Verdict(allowed=True, rule=number, signed_by=names, warnings=tuple(told))
    wanted = " or ".join(rule.signers) if rule.signers else "anybody you trust"
    missing = f"@{short(subject.digest)} is not signed by {wanted}"
    if rule.unsigned == "refuse":
        return Verdict(allowed=False, rule=number, reasons=(missing, *told))
    warnings = (missing, *told) if rule.unsigned == "warn" else tuple(told)
    return Verdict(allowed=True, rule=number, warnings=warnings)


def read_policy(folder: Path) -> Policy:
    """The policy in this folder; the default one where there is no file.

    Raises UsageError for a file that cannot be read: an unclear policy lets nothing pass.
    """
    path = folder / FILE
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return Policy()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="see: lamina key policy -h") from None
    return Policy.parse(found, str(path))


def _deciding(subject: Subject, policy: Policy) -> tuple[int | None, Rule]:
    """The first rule that fits, or one made of the default."""
    for number, rule in enumerate(policy.rules, 1):
        if rule.fits(subject):
            return number, rule
    return None, Rule(unsigned=policy.unsigned)


def _fits(pattern: str | None, texts: tuple[str, ...]) -> bool:
    return pattern is None or any(fnmatchcase(text, pattern) for text in texts)


def _may_sign(finding: Finding, rule: Rule) -> bool:
    return rule.signers is None or finding.name in rule.signers or finding.key in rule.signers


def _told(finding: Finding) -> str:
    who = finding.name or f"key {short(finding.key)}"
    return f"a signature by {who} does not count: {finding.why}"
