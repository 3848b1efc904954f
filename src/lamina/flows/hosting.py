"""`lamina serve`: the stacks of a store behind engines, one engine for each base.

Joins store and engine, and knows no HTTP: the API, the pages and tests all ask a `Host`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lamina.core.digest import short
from lamina.core.errors import LaminaError, MissingBlobError, UnknownNameError
from lamina.core.manifests import IDENTITY, BaseConfig, Descriptor
from lamina.core.names import Name
from lamina.flows.trust import Trust, changed, check_stack
from lamina.serve.constrain import Grammars
from lamina.serve.engine import Limits
from lamina.serve.open import open_engine
from lamina.serve.request import Serving, Stats
from lamina.share.policy import Verdict
from lamina.stack.compile import base_format
from lamina.stack.resolve import ResolvedStack, over_base, resolve
from lamina.store.layout import Store
from lamina.tokens.call_form import CallForm, call_form
from lamina.tokens.template import ChatFormat

_WHERE = "see: GET /v1/models"
_KEPT_VERDICTS = 10_000
EngineMaker = Callable[[Store, Descriptor], Serving]
"""Loads a base, by its manifest's descriptor. Takes seconds."""


def with_limits(limits: Limits) -> EngineMaker:
    """Makes lamina's own engine."""

    def make(store: Store, base: Descriptor) -> Serving:
        return open_engine(store, base, limits=limits)

    return make


@dataclass(frozen=True, eq=False)
class ServedBase:
    """A base that is in memory, and what answers over it need."""

    name: str
    """As the store calls it, else the short digest."""
    identity: str
    engine: Serving
    format: ChatFormat

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over its tokenizer. Raises MissingPartError."""
        return Grammars(self.format.tokenizer, self.format.stop_ids, self.engine.vocabulary)

    @cached_property
    def longest_token(self) -> int:
        """Most characters of text that a token stands for."""
        return max(map(len, self.format.tokenizer.get_vocab()))

    @cached_property
    def form(self) -> CallForm:
        """How its template writes a tool call."""
        return call_form(self.format)


@dataclass(frozen=True)
class Model:
    """A name that may be asked."""

    id: str
    stack: str
    """Digest of the stack; for a base, of the stack of no layers over it."""
    base: str
    """The base's identity."""
    created: int
    """When it came into this store, in seconds since 1970."""


class Host:
    """Answers questions about stacks by name, and has their bases loaded once each. Thread-safe.

    `stacks`: references; only what they mean is served, at whatever version they stand when asked.
    `base`: only stacks over this one. Neither: everything in the store. `trust`: whose policy is
    asked about each stack, where it wants to be asked before serving.
    Raises UnknownNameError, UsageError for stacks that stand on another base than `base`.
    """

    def __init__(
        self,
        store: Store,
        make: EngineMaker,
        *,
        stacks: Sequence[str] = (),
        base: str | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.store = store
        self._trust = trust
        self._allowed: dict[tuple[str, object], Verdict | None] = {}
        self._make = make
        self._stacks = tuple(stacks)
        self._base = None if base is None else resolve(store, base).config.base
        self._loaded: dict[str, ServedBase] = {}
        self._loading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        for text in self._stacks:
            resolve(store, text)  # for whoever starts it: says what is known
            self.resolve(text)

    def models(self, allowed: Sequence[str] | None = None) -> list[Model]:
        """Every name and version that is served, bases too; `allowed` as in `resolve`."""
        store = self.store
        bases = store.bases()
        found = [self._base_model(name, base) for name, base in bases.items()]
        for name, tags in store.names().items():
            found += [self._model(str(Name(name, tag)), target) for tag, target in tags.items()]
        served = self._served(allowed)
        return sorted((m for m in found if m is not None and m in served), key=lambda m: m.id)

    def model(self, text: str, allowed: Sequence[str] | None = None) -> Model:
        """What `text` means now. Raises as `resolve`."""
        stack = self.resolve(text, allowed)
        top = stack.layers[-1].digest if stack.layers else stack.base.digest
        kept = stack.digest if stack.layers and self.store.has(stack.digest) else top
        created = int(self.store.path(kept).stat().st_mtime)
        return Model(text, stack.digest, stack.config.base, created)

    def resolve(self, text: str, allowed: Sequence[str] | None = None) -> ResolvedStack:
        """The stack that `text` means now. `allowed`: references that alone may be asked.

        Raises UnknownNameError for what is unknown or not served here, UsageError, StoreError.
        """
        try:
            stack = resolve(self.store, text)
        except UnknownNameError as error:  # whose hint has names that a caller may not see
            raise UnknownNameError(error.message, hint=_WHERE) from error
        except MissingBlobError as error:
            raise UnknownNameError(f"{text} is no longer in the store: {error.message}") from error
        model = Model(text, stack.digest, stack.config.base, 0)
        if self._base is not None and model.base != self._base:
            raise UnknownNameError(
                f"{text} stands on base {self.base_name(model.base)}, "
                f"which this server does not serve",
                hint=f"start another: lamina serve {text}",
            )
        served = self._served(allowed)
        if not served.here(model):
            raise UnknownNameError(
                f"{text} is not among the stacks that this server was started with",
                hint=f"it serves: {', '.join(self._stacks)}" if allowed is None else _WHERE,
            )
        if model not in served:
            raise UnknownNameError(f"{text} is not among the stacks of this key", hint=_WHERE)
        self._check_trust(stack)
        return stack

    def _check_trust(self, stack: ResolvedStack) -> None:
        """Ask the policy, where it is to be asked before serving. A verdict is kept until keys, the
        policy or the index change. Raises TrustError."""
        if self._trust is None:
            return
        state = (*self._trust.state(), changed(self.store.index_path))
        if (stack.digest, state) not in self._allowed:
            verdict = check_stack(self.store, self._trust, stack)
            if len(self._allowed) > _KEPT_VERDICTS:
                self._allowed.clear()
            self._allowed[stack.digest, state] = verdict

    def base_of(self, stack: ResolvedStack) -> ServedBase:
        """The stack's base, loaded on first use. Raises what the maker raises."""
        identity = stack.config.base
        with self._lock:
            if identity in self._loaded:
                return self._loaded[identity]
            lock = self._loading.setdefault(identity, threading.Lock())
        with lock:
            with self._lock:
                if identity in self._loaded:
                    return self._loaded[identity]
            format_ = base_format(self.store, stack)
            engine = self._make(self.store, stack.base)
            served = ServedBase(self.base_name(identity), identity, engine, format_)
            with self._lock:
                self._loaded[identity] = served
            return served

    def sure(self) -> list[str]:
        """Names of the bases that engines will surely be asked for: those of the stacks that were
        named, else the one that there is. What draws has no engine, and is loaded when asked."""
        found = {model.base for model in self.models() if not self._draws(model.base)}
        if not self._stacks and len(found) > 1:
            return []
        return sorted(self.base_name(identity) for identity in found)

    def load_sure(self) -> None:
        """Load those now, not when the first request comes."""
        for name in self.sure():
            self.base_of(resolve(self.store, name))

    def base_name(self, identity: str) -> str:
        """What the store calls the base of this identity."""
        for name, base in sorted(self.store.bases().items()):
            if (base.annotations or {}).get(IDENTITY, base.digest) == identity:
                return name
        return short(identity)

    def stats(self) -> dict[str, Stats]:
        """Each loaded base's numbers, by its name."""
        return {served.name: served.engine.stats() for served in self.loaded()}

    def loaded(self) -> list[ServedBase]:
        """The bases that are in memory."""
        with self._lock:
            return list(self._loaded.values())

    def drain(self, seconds: float) -> bool:
        """Finish what runs on all engines, cancel it after `seconds`; whether all was finished."""
        loaded = self.loaded()
        end = time.monotonic() + seconds
        done = [s.engine.drain(max(end - time.monotonic(), 0.0)) for s in loaded]
        return all(done)

    def _draws(self, identity: str) -> bool:
        """Whether stacks over this base draw; of one that is damaged or gone, no."""
        with contextlib.suppress(LaminaError, OSError):
            base = self.store.find_base(identity)
            return self.store.config(self.store.manifest(base.digest), BaseConfig).draws
        return False

    def _model(self, name: str, target: Descriptor) -> Model | None:
        """A named stack; None for one that is damaged or just being removed: it cannot be asked."""
        try:
            created = int(self.store.path(target.digest).stat().st_mtime)
            base = str(self.store.glance(target.digest).get("base"))
            return Model(name, target.digest, base, created)
        except (LaminaError, OSError):
            return None

    def _base_model(self, name: str, base: Descriptor) -> Model | None:
        try:
            created = int(self.store.path(base.digest).stat().st_mtime)
            stack = over_base(self.store, base, label=name)
            return Model(name, stack.digest, stack.config.base, created)
        except (LaminaError, OSError):
            return None

    def _served(self, allowed: Sequence[str] | None) -> "_Among":
        """What the host serves, and of that what `allowed` lets through."""
        return _Among(
            self._base,
            self._meant(self._stacks) if self._stacks else None,
            None if allowed is None else self._meant(allowed),
        )

    def _meant(self, references: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
        """(the references, the digests of the stacks that they mean now)."""
        digests = set()
        for text in references:
            with contextlib.suppress(LaminaError, OSError):  # what is gone lets nothing through
                digests.add(resolve(self.store, text).digest)
        return frozenset(references), frozenset(digests)


@dataclass(frozen=True)
class _Among:
    """Which models are among what is served; None: all."""

    base: str | None
    stacks: tuple[frozenset[str], frozenset[str]] | None
    allowed: tuple[frozenset[str], frozenset[str]] | None

    def here(self, model: Model) -> bool:
        """Whether the host serves it, whoever asks."""
        return self.base in (None, model.base) and _means(model, self.stacks)

    def __contains__(self, model: Model) -> bool:
        return self.here(model) and _means(model, self.allowed)


def _means(model: Model, meant: tuple[frozenset[str], frozenset[str]] | None) -> bool:
    """Whether a reference is the model's name, or the name that it is a version of, or means the
    same stack."""
    if meant is None:
        return True
    names, digests = meant
    return bool({model.id, model.id.partition(":")[0]} & names) or model.stack in digests
