"""Requests to one registry: over oras' session and token flow, with time limits and retries.

oras (https://oras.land) brings the HTTP session and knows how tokens are asked for. Added here:
time limits, back-off that grows, HTTP answers as sentences, and no credential over plain HTTP.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from lamina.core.errors import DroppedError, MissingPartError, ShareError
from lamina.core.version import __version__
from lamina.share.body import BLOCK_BYTES, Traffic
from lamina.share.credentials import Credential, find_credential
from lamina.share.reference import RegistryRef

if TYPE_CHECKING:
    import requests

ResultT = TypeVar("ResultT")
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well succeed."""
POOL = 8
"""Connections kept open."""
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


@dataclass(frozen=True)
class Patience:
    """How long and how often to try."""

    attempts: int = 6
    """Tries of one request, or of a transfer that makes no headway."""
    first_seconds: float = 0.25
    """Pause after the first failure; doubled each time."""
    most_seconds: float = 15.0
    """Longest pause, also where the registry asks for more."""
    connect_seconds: float = 10.0
    silent_seconds: float = 60.0
    """Longest silence in an answer or while sending."""

    def pause(self, failures: int, asked: float | None = None) -> None:
        """Sleep before another try; `asked`: seconds that the registry asked for."""
        grown = self.first_seconds * 2 ** max(failures - 1, 0) * random.uniform(0.5, 1.0)
        time.sleep(min(max(grown, asked or 0.0), self.most_seconds))


@dataclass(frozen=True)
class Access:
    """How to reach registries."""

    plain_http: bool = False
    """HTTP without TLS to any host, not only to this machine."""
    tls_verify: bool = True
    ca_file: Path | None = None
    """Certificates of authorities to trust, instead of the system's."""
    credential_files: tuple[Path, ...] = ()
    """Configs of docker or podman; see `share.credentials`."""
    patience: Patience = field(default_factory=Patience)


class Wire:
    """A session with one registry. Safe to use from several threads."""

    def __init__(self, ref: RegistryRef, access: Access) -> None:
        self.ref = ref
        self.patience = access.patience
        self._access = access
        self._api_host = _API_HOSTS.get(ref.host, ref.host)
        self._plain_allowed = access.plain_http or ref.loopback
        self._lock = threading.Lock()
        self._authorization: str | None = None
        self._credential: Credential | None = None
        self._looked_up = False
        self.traffic = Traffic()
        self._oras = self._open(insecure=self._plain_allowed and access.ca_file is None)
        self._greeted = False

    def _open(self, *, insecure: bool) -> Any:
        oras = _oras()
        verify = str(self._access.ca_file) if self._access.ca_file else self._access.tls_verify
        registry = oras.Registry(hostname=self._api_host, insecure=insecure, tls_verify=verify)
        _mount(registry.session, self.patience)
        registry.session.auth = _leave  # no ~/.netrc in place of our own header
        registry.session.verify = verify
        registry.session.headers["User-Agent"] = f"lamina/{__version__}"
        if self.ref.loopback:
            registry.session.trust_env = False  # no proxy to reach this machine
        return registry

    @property
    def origin(self) -> str:
        """`https://host`."""
        return f"{self._oras.prefix}://{self._api_host}"

    def close(self) -> None:
        """Close all connections."""
        self._oras.session.close()

    def greet(self) -> None:
        """See that a registry is there, and over what it speaks. Once.

        On this machine plain HTTP is tried first, TLS where that is what answers.
        Raises ShareError.
        """
        if self._greeted:
            return
        answer = self.send("GET", "/v2/", quiet=(400, 401, 403, 404))
        if answer.status_code == 400 and self._oras.prefix == "http" and b"HTTPS" in answer.content:
            self._oras = self._open(insecure=False)
            answer = self.send("GET", "/v2/", quiet=(400, 401, 403, 404))
        if answer.status_code in (400, 404):
            raise ShareError(
                f"{self.origin} answers, but not as a registry (status {answer.status_code})",
                hint="check host and port",
            )
        self._greeted = True

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        quiet: tuple[int, ...] = (),
        stream: bool = False,
        again: bool = True,
    ) -> "requests.Response":
        """One request, authorised; its answer when that is a success or among `quiet`.

        `url`: a path of this registry, or a whole URL that the registry gave. `again`: try again
        with growing pauses. Raises DroppedError when no answer came or the registry is busy,
        ShareError for refusals.
        """
        if not again:
            return self._once(method, url, headers or {}, data, quiet, stream)
        return self.patiently(lambda: self._once(method, url, headers or {}, data, quiet, stream))

    def patiently(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something again, with growing pauses, as long as it ends in DroppedError."""
        failures = 0
        while True:
            try:
                return work()
            except DroppedError as error:
                failures += 1
                self.traffic.add(retried=1)
                if failures >= self.patience.attempts:
                    raise
                self.patience.pause(failures, error.retry_after)

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: Any,
        quiet: tuple[int, ...],
        stream: bool,
    ) -> "requests.Response":
        whole = urljoin(self.origin, url)
        self._check_scheme(whole)
        ours = urlsplit(whole).netloc == self._api_host
        for attempt in (1, 2):
            used = self._authorization if ours else None  # never to a host that we were sent to
            sent = {"Accept-Encoding": "identity", **headers}
            if used is not None:
                sent["Authorization"] = used
            answer = self._exchange(method, whole, sent, data, stream)
            if ours and answer.status_code == 401 and attempt == 1:
                challenge = answer.headers.get("WWW-Authenticate", "")
                answer.close()
                if self._authorise(challenge, used):
                    continue
            break
        self._check_scheme(answer.url)  # after redirects
        if answer.status_code < 400 or answer.status_code in quiet:
            return answer
        raise self._refusal(method, whole, answer)

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], data: Any, stream: bool
    ) -> "requests.Response":
        import requests

        body = data() if callable(data) else data
        self.traffic.add(sent=len(body) if body is not None else 0)
        try:
            answer = self._oras.session.request(
                method, url, headers=headers, data=body, stream=stream
            )
            if not stream:
                self.traffic.add(received=len(answer.content))
            return answer
        except requests.exceptions.SSLError as error:
            if "certificate" not in str(error).lower():
                raise DroppedError(f"TLS with {self.ref.host} broke: {_reason(error)}") from None
            raise ShareError(
                f"the certificate of {self.ref.host} is not trusted: {_reason(error)}",
                hint="give its authority's certificate with --ca-file FILE",
            ) from None
        except requests.exceptions.TooManyRedirects as error:
            raise ShareError(f"{self.ref.host} sends us in circles: {_reason(error)}") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise ShareError(f"{self.ref.host} sends us nowhere: {_reason(error)}") from None
        except (requests.exceptions.RequestException, OSError) as error:
            raise DroppedError(
                f"no answer from {self.ref.host}: {_reason(error)}",
                hint="check host, port and network, then try again: what has moved already "
                "is not moved again",
            ) from None

    def _check_scheme(self, url: str) -> None:
        if urlsplit(url).scheme == "http" and not self._plain_allowed:
            raise ShareError(
                f"{self.ref.host} sends us to {urlsplit(url).netloc} over plain HTTP",
                hint="refused; --plain-http allows it",
            )

    def _refusal(self, method: str, url: str, answer: "requests.Response") -> ShareError:
        """What an answer of 400 and more means, for people."""
        status, said = answer.status_code, said_by(answer)
        answer.close()
        error = self._explained(method, url, status, said)
        error.status, error.retry_after = status, _retry_after(answer)
        return error

    def _explained(self, method: str, url: str, status: int, said: str) -> ShareError:
        what = f"{method} {urlsplit(url).path}"
        if status in BUSY:
            return DroppedError(
                f"{self.ref.host} is busy or broken: {status}{said} to {what}",
                hint="try again later: what has moved already is not moved again",
            )
        if status in (401, 403):
            who = f"as {self._credential.user}" if self._credential else "without credentials"
            return ShareError(
                f"{self.ref.host} does not allow {what} {who}: {status}{said}",
                hint=f"log in with an account that may: docker login {self.ref.host} "
                "(skopeo login and oras login do as well)",
            )
        return ShareError(f"{self.ref.host} refused {what}: {status}{said}")

    def _authorise(self, challenge: str, used: str | None) -> bool:
        """Answer a challenge; whether it is worth asking again. Raises ShareError."""
        with self._lock:
            if self._authorization != used:  # another thread was quicker
                return True
            if not self._looked_up:
                files, host = self._access.credential_files, self.ref.host
                self._credential = find_credential(files, host, self.ref.repository)
                self._looked_up = True
            kind = challenge.partition(" ")[0].lower()
            if kind == "basic":
                return self._basic(used)
            if kind == "bearer":
                return self._bearer(challenge)
            return False

    def _basic(self, used: str | None) -> bool:
        if self._credential is None or self._credential.identity_token or used is not None:
            return False
        self._oras.auth.set_basic_auth(self._credential.user, self._credential.secret)
        self._authorization = f"Basic {self._oras.auth._basic_auth}"
        return True

    def _bearer(self, challenge: str) -> bool:
        from oras.auth.utils import parse_auth_header

        asked = parse_auth_header(challenge)
        if not asked.realm:
            return False
        self._check_scheme(urljoin(self.origin, asked.realm))
        token = self._token(asked)
        if not isinstance(token, str) or not token:
            return False
        self._authorization = f"Bearer {token}"
        return True

    def _token(self, asked: Any) -> Any:
        """A token as the challenge asks for it: anonymous, by password, or by identity token."""
        import requests

        known, auth = self._credential, self._oras.auth
        try:
            if known is None:
                return auth.request_anonymous_token(asked)
            if known.identity_token is None:
                auth.set_basic_auth(known.user, known.secret)
                return auth.request_token(asked)
            form = {
                "grant_type": "refresh_token",
                "refresh_token": known.identity_token,
                "service": asked.service or "",
                "scope": asked.scope or "",
                "client_id": "lamina",
            }
            answer = self._oras.session.post(asked.realm, data=form)
            return answer.json().get("access_token") if answer.status_code == 200 else None
        except (requests.exceptions.RequestException, OSError, ValueError, AttributeError) as error:
            raise DroppedError(
                f"no token from {urlsplit(asked.realm).netloc}: {_reason(error)}"
            ) from None


def said_by(answer: "requests.Response") -> str:
    """What a registry says of an error, in at most 300 characters; '' if nothing."""
    try:
        data = answer.raw.read(1 << 16, decode_content=True) if answer.raw else b""
        text = (data or answer.content)[: 1 << 16]
    except Exception:  # the reason is not worth a second failure
        return ""
    import json

    try:
        errors = json.loads(text)["errors"]
        parts = [f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors]
        said = "; ".join(part for part in parts if part)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return " " + "".join(c if c.isprintable() else "?" for c in said)[:300] if said else ""


def _retry_after(answer: "requests.Response") -> float | None:
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _reason(error: BaseException) -> str:
    """The innermost reason of a stack of wrapped errors, one line."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or next(
            (a for a in seen.args if isinstance(a, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = str(seen).splitlines()[0] if str(seen) else ""
    return (text.rpartition(">: ")[2] or type(seen).__name__)[:300]


def _leave(request: Any) -> Any:
    return request


def _mount(session: Any, patience: Patience) -> None:
    """Give a session time limits, larger blocks, enough connections and answers that are whole.

    It retries nothing.
    """
    from requests.adapters import HTTPAdapter

    from lamina.share.heads import POOLS

    class Adapter(HTTPAdapter):  # type: ignore[misc]
        def init_poolmanager(self, *args: Any, **more: Any) -> None:
            super().init_poolmanager(*args, blocksize=BLOCK_BYTES, **more)
            self.poolmanager.pool_classes_by_scheme = POOLS

        def proxy_manager_for(self, *args: Any, **more: Any) -> Any:
            manager = super().proxy_manager_for(*args, **more)
            manager.pool_classes_by_scheme = POOLS
            return manager

        def send(self, request: Any, **more: Any) -> Any:
            if more.get("timeout") is None:
                more["timeout"] = (patience.connect_seconds, patience.silent_seconds)
            return super().send(request, **more)

    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_connections=POOL, pool_maxsize=POOL, max_retries=0))


def _oras() -> Any:
    try:
        import oras.provider
    except ImportError:
        raise MissingPartError(
            "registries need `oras`, which is not installed", hint="pip install 'lamina[share]'"
        ) from None
    return oras.provider
