"""Credentials for registries, from where docker, podman, skopeo and oras keep theirs.

Read, never written: `docker login HOST` (or `skopeo login`, `oras login`) puts them there. Looked
for in this order, as docker does: the host's `credHelpers`, `credsStore`, then `auths`.
https://docs.docker.com/reference/cli/docker/login/#credential-stores
"""

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.core.errors import ShareError

HELPER_SECONDS = 30.0
_FILE_LIMIT = 4 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USER = "<token>"
"""The user name by which a helper says that its secret is an identity token."""
DOCKER_HUB = "docker.io"
_HUB_KEY = "index.docker.io"


@dataclass(frozen=True)
class Credential:
    """Who we are to a registry. Secrets never appear in `repr`."""

    user: str
    secret: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    """OAuth2 refresh token, instead of a password."""


def find_credential(
    files: Iterable[Path], host: str, repository: str, *, path: str | None = None
) -> Credential | None:
    """The credential for a repository of a registry; None where no file has one.

    `files`: configs, the first one that knows the host wins; those missing are passed over.
    `path`: where helper programs are looked for (PATH by default).
    Raises ShareError for files that can't be read and helpers that fail.
    """
    wanted = _HUB_KEY if host in (DOCKER_HUB, _HUB_KEY, f"registry-1.{DOCKER_HUB}") else host
    for file in files:
        config = _read(file)
        found = _in_config(config, file, wanted, repository, path) if config else None
        if found is not None:
            return found
    return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        if file.stat().st_size > _FILE_LIMIT:
            raise ShareError(f"{file} is too large to be a file of credentials")
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ShareError):
            raise
        raise ShareError(
            f"cannot read the credentials in {file}: {type(error).__name__}",
            hint="mend the file, or log in again: docker login HOST",
        ) from None
    return value if isinstance(value, dict) else None


def _in_config(
    config: dict[str, Any], file: Path, host: str, repository: str, path: str | None
) -> Credential | None:
    helpers, auths = _table(config, "credHelpers"), _table(config, "auths")
    by_host = {_host_of(key): value for key, value in helpers.items()}
    if isinstance(by_host.get(host), str):
        return _from_helper(by_host[host], _server(auths, host), path)
    if isinstance(config.get("credsStore"), str) and config["credsStore"]:
        found = _from_helper(config["credsStore"], _server(auths, host), path)
        if found is not None:
            return found
    for key in _keys(host, repository):  # podman keeps some for one repository only
        for known, entry in auths.items():
            if _plain(known) == key and isinstance(entry, dict):
                found = _from_entry(entry, file)
                if found is not None:
                    return found
    return None


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _keys(host: str, repository: str) -> list[str]:
    """`host/a/b`, `host/a`, `host`."""
    parts = repository.split("/")
    return ["/".join([host, *parts[:count]]) for count in range(len(parts), -1, -1)]


def _plain(key: str) -> str:
    """A key of `auths` without scheme and API version."""
    bare = re.sub(r"^https?://", "", key)
    return re.sub(r"/v[12]/?$", "", bare).rstrip("/")


def _host_of(key: str) -> str:
    return _plain(key).partition("/")[0]


def _server(auths: dict[str, Any], host: str) -> str:
    """What a helper knows the host by: as `auths` spells it, else as it is."""
    if host == _HUB_KEY:
        return f"https://{_HUB_KEY}/v1/"
    return next((key for key in auths if _plain(key) == host), host)


def _from_entry(entry: dict[str, Any], file: Path) -> Credential | None:
    token = entry.get("identitytoken")
    user, secret = entry.get("username"), entry.get("password")
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            text = base64.b64decode(packed, validate=True).decode()
        except (binascii.Error, ValueError):
            raise ShareError(
                f"a credential in {file} is not base64", hint="log in again: docker login HOST"
            ) from None
        user, _, secret = text.partition(":")
        secret = secret.rstrip("\0")
    if isinstance(token, str) and token:
        return Credential(user if isinstance(user, str) else _TOKEN_USER, "", token)
    if isinstance(user, str) and isinstance(secret, str) and user:
        return Credential(user, secret)
    return None


def _from_helper(suffix: str, server: str, path: str | None) -> Credential | None:
    """Ask `docker-credential-SUFFIX`; None when it knows nothing of the server."""
    program = f"docker-credential-{suffix}"
    if not _HELPER.fullmatch(suffix):
        raise ShareError(f"{suffix!r} is no credential helper", hint="mend docker's config.json")
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            check=False,
            env=None if path is None else {"PATH": path},
        )
    except FileNotFoundError:
        raise ShareError(
            f"docker's config names {program}, which is not installed",
            hint="install it, or log in without it",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShareError(f"{program} failed: {type(error).__name__}") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "not found" in said.lower():
            return None
        raise ShareError(f"{program} failed: {said[:200]!r}", hint="try its login again")
    try:
        value = json.loads(done.stdout)
        user, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError):
        raise ShareError(f"{program} answered with no credential") from None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise ShareError(f"{program} answered with no credential")
    return Credential(user, "", secret) if user == _TOKEN_USER else Credential(user, secret)
