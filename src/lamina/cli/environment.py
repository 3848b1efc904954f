"""The one place that reads the environment.

LAMINA_HOME    the store's folder (default: the platform's data folder)
LAMINA_CONFIG  folder of keys, policy.toml and hardware.toml (default: the platform's config folder)
LAMINA_AUTHOR  author recorded in the layers you train (default: none)
RAY_ADDRESS    the Ray cluster of --workers, --replicas and `lamina farm` without --ray
OPENAI_API_KEY the key that `lamina arena` shows an endpoint (--key-variable names another)

Credentials for registries are read where docker, podman and skopeo keep them: $REGISTRY_AUTH_FILE,
$XDG_RUNTIME_DIR/containers/auth.json, $DOCKER_CONFIG/config.json (default: ~/.docker).
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.errors import UsageError
from lamina.core.plain import line_fault

if TYPE_CHECKING:
    from lamina.core.rates import Rates
    from lamina.flows.trust import Trust
    from lamina.plan.hardware import Profiles
    from lamina.share.wire import Access
    from lamina.store.layout import Store


def home() -> Path:
    """The store's folder. Raises UsageError when there is no home folder to put it in."""
    try:
        return _home()
    except RuntimeError as error:
        raise UsageError(
            f"no place for the store: {error}", hint="set LAMINA_HOME to a folder"
        ) from None


def _home() -> Path:
    given = os.environ.get("LAMINA_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "lamina"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lamina"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "lamina"


def config() -> Path:
    """The folder of keys and of the trust policy. Raises UsageError as `home`."""
    try:
        return _config()
    except RuntimeError as error:
        raise UsageError(
            f"no place for keys: {error}", hint="set LAMINA_CONFIG to a folder"
        ) from None


def _config() -> Path:
    given = os.environ.get("LAMINA_CONFIG")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Preferences" / "lamina"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")) / "lamina"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lamina"


def ray_address(given: str | None) -> str | None:
    """The cluster's address; None for one of this machine's own, which `local` asks for."""
    address = given or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def trust() -> "Trust":
    """Whom the user believes. Raises UsageError where there is no place for keys."""
    from lamina.flows.trust import Trust

    return Trust(config())


def trust_to_show() -> "Trust | None":
    """The same; None where there is no place for keys, for what only tells who signed."""
    try:
        return trust()
    except UsageError:
        return None


def hardware() -> "Profiles":
    """Machines and prices: those that are shipped, with the user's own file on top.

    Raises UsageError for a file with unknown keys or wrong values.
    """
    from lamina.plan.hardware import FILE, profiles

    try:
        return profiles(_config() / FILE)
    except RuntimeError:  # no home folder, hence no file in it
        return profiles()


def rates() -> "Rates":
    """What this machine's time and electricity cost, for what goes on record. Raises UsageError as
    `hardware`."""
    from lamina.flows.spending import rates_of

    return rates_of(hardware())


def author() -> str | None:
    """Who signs as author of new layers. Raises UsageError for what no terminal should show."""
    given = os.environ.get("LAMINA_AUTHOR") or None
    fault = line_fault(given) if given else None
    if fault:
        raise UsageError(f"LAMINA_AUTHOR {fault}", hint="set it to a name on one line")
    return given


def secret(variable: str) -> str | None:
    """A key that the user keeps in a variable of his choice; None where there is none."""
    return os.environ.get(variable) or None


def open_store() -> "Store":
    """The user's store, made on first use."""
    from lamina.store.layout import Store

    return Store.open(home())


def credential_files() -> tuple[Path, ...]:
    """Where credentials for registries may lie, the likeliest first."""
    given, runtime = os.environ.get("REGISTRY_AUTH_FILE"), os.environ.get("XDG_RUNTIME_DIR")
    found = [Path(given)] if given else []
    if runtime:
        found.append(Path(runtime) / "containers" / "auth.json")
    folder = os.environ.get("DOCKER_CONFIG")
    with contextlib.suppress(RuntimeError):  # no home folder
        found.append((Path(folder) if folder else Path.home() / ".docker") / "config.json")
    return tuple(found)


def access(
    *, plain_http: bool = False, ca_file: str | None = None, no_tls_verify: bool = False
) -> "Access":
    """How to reach registries. Raises UsageError when there is no such file."""
    from lamina.share.wire import Access

    certificates = Path(ca_file) if ca_file else None
    if certificates is not None and not certificates.is_file():
        raise UsageError(f"there is no file {ca_file}", hint="--ca-file takes a PEM file")
    return Access(
        plain_http=plain_http,
        tls_verify=not no_tls_verify,
        ca_file=certificates,
        credential_files=credential_files(),
    )
