"""Places to push to and pull from, parsed once.

Grammar::

    place      = oci | hub
    oci        = "oci://" host "/" repository [ ":" tag | "@" digest ]
    host       = ( domain | ipv4 | "[" ipv6 "]" ) [ ":" port ]
    repository = path { "/" path }                 with host and "/" at most 255 characters
    path       = word { ( "." | "_" | "__" | 1*"-" ) word }
    word       = 1*( "a".."z" | "0".."9" )
    tag        = as in `core.names`                default: latest
    digest     = "sha256:" 64*64( "0".."9" | "a".."f" )
    hub        = "hf:" org "/" name [ "@" revision ]

(OCI distribution-spec 1.1, "Pulling manifests".)
"""

import ipaddress
import re
from dataclasses import dataclass, replace

from lamina.core.errors import UsageError
from lamina.core.names import LATEST

OCI = "oci://"
HUB = "hf:"
MAX_REPOSITORY = 255
_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_DOMAIN}(?:\.{_DOMAIN})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PATH}(?:/{_PATH})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_HUB_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
_EXAMPLES = "for example oci://ghcr.io/me/support:v1 or hf:me/support"


@dataclass(frozen=True)
class RegistryRef:
    """A repository of a registry, and a tag or a digest in it."""

    host: str
    """With its port, if one was given."""
    repository: str
    tag: str | None = LATEST
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.place}@{self.digest}" if self.digest else f"{self.place}:{self.tag}"

    @property
    def place(self) -> str:
        """Without tag and digest."""
        return f"{OCI}{self.host}/{self.repository}"

    @property
    def target(self) -> str:
        """What comes after `manifests/` in the protocol."""
        return self.digest or self.tag or LATEST

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine, by its own loopback names and addresses."""
        bare = self.host.rpartition(":")[0] if _has_port(self.host) else self.host
        if bare.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(bare.strip("[]")).is_loopback
        except ValueError:
            return False

    def at(self, digest: str) -> "RegistryRef":
        """The same repository at a digest."""
        return replace(self, tag=None, digest=digest)


@dataclass(frozen=True)
class HubRef:
    """A repository of the Hugging Face Hub."""

    repository: str
    """`org/name`."""
    revision: str | None = None
    """Branch, tag or commit."""

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


Place = RegistryRef | HubRef


def parse_place(text: str) -> Place:
    """Parse where to push to or pull from, as in the grammar above. Raises UsageError."""
    if text.startswith(OCI):
        return _parse_oci(text)
    if text.startswith(HUB):
        return _parse_hub(text)
    raise UsageError(f"{text!r} is no place that lamina knows", hint=_EXAMPLES)


def _parse_oci(text: str) -> RegistryRef:
    host, slash, rest = text.removeprefix(OCI).partition("/")
    path, at, digest = rest.partition("@")
    last = path.rpartition("/")[2]
    tag: str | None = None
    if ":" in last:
        path, _, tag = path.rpartition(":")
    faults = []
    if not _HOST.fullmatch(host) or not _valid_address(host):
        faults.append(f"{host!r} is not a host: a name or address, with :port if need be")
    if not slash or not _REPOSITORY.fullmatch(path):
        faults.append(
            f"{path!r} is not a repository: lower-case letters, digits, and . _ - between them, "
            "in parts joined by /"
        )
    if len(host) + 1 + len(path) > MAX_REPOSITORY:
        faults.append(f"host and repository have more than {MAX_REPOSITORY} characters")
    if tag is not None and not _TAG.fullmatch(tag):
        faults.append(f"{tag!r} is not a tag")
    if at and not _DIGEST.fullmatch(digest):
        faults.append(f"{digest!r} is not a digest: write all of sha256:… after the @")
    if at and tag is not None:
        faults.append("give a tag or a digest, not both")
    if faults:
        raise UsageError(f"{text!r} is no place in a registry", faults=faults, hint=_EXAMPLES)
    if at:
        return RegistryRef(host, path, None, digest)
    return RegistryRef(host, path, tag or LATEST)


def _parse_hub(text: str) -> HubRef:
    name, at, revision = text.removeprefix(HUB).partition("@")
    if not _HUB_REPOSITORY.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(f"{text!r} is no repository of the Hub", hint="write hf:org/name[@rev]")
    return HubRef(name, revision or None)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _valid_address(host: str) -> bool:
    """Whether a host's brackets and port, where it has some, hold what they should."""
    bare, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
    if port and not 0 < int(port) < 65536:
        return False
    if bare.startswith("["):
        try:
            ipaddress.IPv6Address(bare.strip("[]"))
        except ValueError:
            return False
    return True
