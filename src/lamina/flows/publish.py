"""`lamina push` and `lamina pull`: stacks to and from other places.

Pull: what is there is shown first; then the base, payloads, manifests and evidence come, in that
order; a name that exists already moves through the gate.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.manifests import BASE_TYPE, SOURCE, Descriptor, StackConfig
from lamina.core.names import MAX_NAME, Name, parse_reference
from lamina.core.report import Reporter
from lamina.flows import foreign_bases
from lamina.flows.licensing import check, licences_of
from lamina.flows.naming import name_stack, new_name
from lamina.flows.preview import preview, render
from lamina.flows.trust import Trust, ask_about_incoming, insist
from lamina.flows.withheld import check_withheld, say, travelling_data
from lamina.share import mounts
from lamina.share.incoming import BlobSource, Incoming, admit, look
from lamina.share.parcel import Parcel, parcel_of, public_source
from lamina.share.policy import Verdict
from lamina.share.reference import HubRef, RegistryRef, parse_place
from lamina.share.referrers import Repository
from lamina.share.transfer import Moved, fetch, send
from lamina.share.wire import Access, Patience
from lamina.stack.resolve import of_descriptor, resolve
from lamina.store.layout import Store

Confirm = Callable[[str], bool]
"""Shows what is there and asks whether to go on."""


@dataclass(frozen=True)
class Landing:
    """How a pulled stack lands."""

    name: str | None = None
    """The name it gets; None: from the place."""
    dry_run: bool = False
    override: str | None = None
    """Why the name moves though the gate says no."""
    author: str | None = None
    trust: Trust | None = None
    """Whose signatures count and what the policy asks; None: nobody is asked."""


def push(
    store: Store,
    text: str,
    place: str,
    access: Access,
    reporter: Reporter,
    *,
    with_base: bool = False,
    force: bool = False,
    despite: str | None = None,
) -> dict[str, Any]:
    """Send a stack (or a base) to a registry, and move the tag to it last.

    Says what of the data goes along before anything does. `despite`: the reason for going on where
    a licence forbids to share it.
    Raises CheckError when the tag points at something that this store does not know, or a licence
    forbids it, ShareError, UsageError (also for data that a layer says it withholds), StoreError.
    """
    ref = _registry(place)
    if ref.tag is None:
        raise UsageError(f"{place}: push to a tag, not to a digest", hint=f"{ref.place}:latest")
    root = _object(store, text)
    parcel = parcel_of(store, root.digest, with_base=with_base)
    if root.artifactType != BASE_TYPE:
        _check_outgoing(store, text, parcel, reporter, despite)
    if parcel.base is None and not _base_can_be_had(store, parcel):
        reporter.say(
            "the base came from a folder: who pulls this needs it too, or push --with-base"
        )
    if not access.tls_verify:
        reporter.say("certificates are not checked: who answers may be anybody")
    with Repository(ref, access) as repository:
        there = repository.head_manifest(ref.tag)
        if not force:
            _check_move(store, ref, there, root.digest)
        moved = send(
            store,
            parcel,
            repository,
            mounts=mounts.known_elsewhere(store.cache_dir, ref),
            reporter=reporter,
        )
        if parcel.base is not None and parcel.base.digest != root.digest:
            # a tag keeps it: registries sweep what none has
            tag = f"base-{short(parcel.base.digest)}"
            if repository.head_manifest(tag) != parcel.base.digest:
                repository.put_manifest(parcel.read(store, parcel.base), tag)
        before = repository.head_manifest(ref.tag)
        if before != there and not force:
            _check_move(store, ref, before, root.digest)
        if before != root.digest:
            repository.put_manifest(parcel.read(store, parcel.root), ref.tag)
        repository.about.settle()
        _check_moved(repository, ref, root.digest)
        traffic = repository.wire.traffic
    mounts.remember(store.cache_dir, ref, parcel.blobs)
    return {
        "pushed": str(ref),
        "digest": root.digest,
        "previous": there,
        "sent": traffic.sent,
        **_counts(moved, traffic.retried),
    }


def _check_outgoing(
    store: Store, text: str, parcel: Parcel, reporter: Reporter, despite: str | None
) -> None:
    """Nothing that is withheld, nothing that a licence forbids to share; the rest is said."""
    stack = of_descriptor(store, parcel.root, label=text)
    check_withheld(stack, parcel)
    check(licences_of(store, stack, "share"), f"pushing {text}", reporter, despite=despite)
    for row in travelling_data(stack, parcel):
        reporter.say(f"data that goes along with {say(row)}")


def _object(store: Store, text: str) -> Descriptor:
    """The base or stack that is meant; the stack of a layer is stored, if it wasn't."""
    found = store.resolve(parse_reference(text))
    if found.artifactType == BASE_TYPE:
        return found
    stack = resolve(store, text)
    return store.put_stack(stack.config.base, stack.config.layers)


def _base_can_be_had(store: Store, parcel: Parcel) -> bool:
    if parcel.root.artifactType == BASE_TYPE:
        return True
    config = store.config(store.manifest(parcel.root.digest), StackConfig)
    base = store.find_base(config.base)
    return public_source((base.annotations or {}).get(SOURCE)) is not None


def _check_move(store: Store, ref: RegistryRef, there: str | None, ours: str) -> None:
    """Refuse to drop what somebody else has pushed since we looked."""
    if there is None or there == ours or store.has(there):
        return
    raise CheckError(
        f"{ref} points at @{short(there)}, which this store does not have",
        hint=f"somebody else pushed it: look at it with `lamina pull {ref} --dry-run`, pull it, or "
        "overwrite the tag with --force",
    )


def _check_moved(repository: Repository, ref: RegistryRef, ours: str) -> None:
    """See that the tag points at what was pushed."""
    now = repository.head_manifest(ref.target)
    if now != ours:
        raise CheckError(
            f"all was pushed, but {ref} points at {'nothing' if now is None else '@' + short(now)}",
            hint="somebody else moved it at the same time; it is there by its digest: "
            f"{ref.at(ours)}",
        )


def pull(
    store: Store,
    place: str,
    access: Access,
    reporter: Reporter,
    landing: Landing,
    *,
    confirm: Confirm | None = None,
) -> dict[str, Any]:
    """Bring a stack, layer or base here and name it.

    `confirm` is asked with the preview's text before payloads move; None: go on.
    Raises GateError when the gate says no, CheckError when `confirm` does, CorruptBlobError,
    BaseError, ShareError, UsageError, StoreError, TrustError when the policy does.
    """
    ref = _registry(place)
    if not landing.dry_run:
        default_name(store, ref.repository, landing.name)  # a bad name is said before any asking
    if not access.tls_verify:
        reporter.say("certificates are not checked: who answers may be anybody")
    with Repository(ref, access) as repository:
        taking = Taking(store, repository, str(ref), reporter, repository.wire.patience)
        found = taking.take(repository.resolve(), landing, ref.repository, confirm)
        traffic = repository.wire.traffic
    if landing.dry_run:
        return found
    mounts.remember(store.cache_dir, ref, taking.payload)
    return {
        **found,
        "received": traffic.received,
        **_counts(taking.moved, traffic.retried),
    }


class Taking:
    """One object on its way into the store, from whatever place it lies in."""

    def __init__(
        self,
        store: Store,
        source: BlobSource,
        place: str,
        reporter: Reporter,
        patience: Patience | None = None,
    ) -> None:
        self._store, self._source, self._place = store, source, place
        self._reporter, self._patience = reporter, patience
        self._incoming: Incoming
        self.moved = Moved()
        self.payload: tuple[Descriptor, ...] = ()

    def take(
        self, digest: str, landing: Landing, repository: str, confirm: Confirm | None
    ) -> dict[str, Any]:
        """Look at it, show it, bring it, name it. `repository`: what it is named after where no
        name is given. Raises as `pull`."""
        name = None if landing.dry_run else default_name(self._store, repository, landing.name)
        self._incoming = look(self._store, self._source, digest)
        self.payload = self._incoming.payload
        shown = preview(self._store, self._incoming, self._place)
        verdict = self._ask(shown, landing, repository)
        if landing.dry_run:
            return {"pulled": None, "preview": shown, "text": render(shown)}
        if verdict is not None and landing.trust is not None:
            insist(landing.trust, verdict)
        if confirm is not None and not confirm(render(shown)):
            raise CheckError("nothing was pulled")
        assert name is not None  # not a dry run
        bare = self._incoming.kind == BASE_TYPE
        found = self.base(name) if bare else self.stack(name, self._place, landing)
        return {"pulled": self._place, "preview": shown, **found}

    def _ask(self, shown: dict[str, Any], landing: Landing, repository: str) -> Verdict | None:
        """Ask the trust policy; what signatures prove and what it says goes into the preview."""
        if landing.trust is None:
            return None
        names = [landing.name or repository.rpartition("/")[2]]
        findings, verdict = ask_about_incoming(
            landing.trust, self._incoming, names=names, source=self._place
        )
        shown["signatures"] = [finding.model_dump(mode="json") for finding in findings]
        shown["policy"] = None if verdict is None else verdict.model_dump(mode="json")
        return verdict

    def _bring(self, items: Sequence[Descriptor]) -> None:
        fetch(
            self._store,
            self._source,
            items,
            reporter=self._reporter,
            moved=self.moved,
            patience=self._patience,
        )

    def base(self, name: Name) -> dict[str, Any]:
        """A bare base."""
        identity = self._incoming.base
        if not foreign_bases.at_hand(self._store, identity):
            digest = self._incoming.root.digest
            foreign_bases.from_place(self._store, digest, identity, self._source, self._bring, None)
        stored = self._store.find_base(identity)
        self._store.tag_base(name.name, stored)
        return {"name": name.name, "base": identity, "stack": None}

    def stack(self, name: Name, label: str, landing: Landing) -> dict[str, Any]:
        """A stack, or a layer as the stack that it is the top of."""
        stated = self._incoming.stands_on()
        base = foreign_bases.bring_base(
            self._store,
            self._incoming.base,
            stated,
            self._source,
            self._bring,
            self._reporter,
        )
        stored = admit(
            self._store,
            self._source,
            self._incoming,
            label=label,
            fetch=lambda _store, _source, items: self._bring(items),
        )
        version = self._name(stored, name, landing)
        self._store.remove_root(stored.digest)  # its name keeps it from here on
        return {
            "name": str(name.at_version(version)),
            "stack": stored.digest,
            "base": self._incoming.base,
            "new_base": base,
        }

    def _name(self, stored: Descriptor, name: Name, landing: Landing) -> int:
        """Name the stack; a name that exists moves through the gate."""
        from lamina.flows.examine import Examination, current, examine_for_gate
        from lamina.gate.verdict import verdict

        stack = of_descriptor(self._store, stored, label=str(name))
        if current(self._store, name.name) in (None, stack.digest):  # nothing to compare with
            examination = Examination(
                stack=stack.digest,
                label=stack.label,
                results=(),
                comparisons=(),
                verdict=verdict([]),
                previous=current(self._store, name.name),
            )
        else:
            examination = examine_for_gate(self._store, stack, None, name.name, self._reporter)
        kept_as = f"@{short(stored.digest)}"
        return name_stack(
            self._store,
            stack,
            name,
            examination,
            override=landing.override,
            author=landing.author,
            kept_as=kept_as,
            retry_with=f'lamina tag {kept_as} {name} --accept-regression "why"',
        )


def default_name(store: Store, repository: str, wanted: str | None) -> Name:
    """The name that a pulled object gets: the given one, or the repository's last word."""
    if wanted is not None:
        return new_name(store, wanted)
    plain = re.sub(r"[._-]+", lambda m: m[0][0], repository.rpartition("/")[2].lower())
    name = Name(plain[:MAX_NAME].rstrip("._-"))
    if name.name in store.bases():
        raise UsageError(f"{name} is a base here", hint="give a name: --as NAME")
    return name


def _registry(place: str) -> RegistryRef:
    found = parse_place(place)
    if isinstance(found, HubRef):
        raise UsageError(f"{place}: the Hub is not reached this way", hint="oci://host/repository")
    return found


def _counts(moved: Moved, retried: int) -> dict[str, int]:
    return {
        "blobs": moved.blobs,
        "mounted": moved.mounted,
        "retried": moved.retried + retried,
    }
