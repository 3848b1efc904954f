"""`lamina push STACK hf:org/name` and `lamina pull hf:org/name`: stacks to and from the Hub.

What others' tools read (one PEFT adapter of all layers, or diffusers' LoRA file where it draws; a
model card) lies in the repository's root, what lamina restores (the stack itself, its layers, its
evidence) under `lamina/`: one commit holds both, and the adapter is loaded back by PEFT, or
diffusers, and compared before anything is sent.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.bases import hub as bases_hub
from lamina.bases.hub import HubRepo
from lamina.bases.quiet import quiet
from lamina.core.digest import short
from lamina.core.errors import (
    CheckError,
    LayerError,
    MissingPartError,
    ShareError,
    StoreError,
    UsageError,
)
from lamina.core.files import TEMP_PREFIX
from lamina.core.licences import Licensed
from lamina.core.manifests import Descriptor
from lamina.core.report import Reporter, Silent
from lamina.core.sizes import size_text
from lamina.flows.card import card
from lamina.flows.licensing import check, licences_of
from lamina.flows.preview import clean
from lamina.flows.publish import Confirm, Landing, Taking, default_name
from lamina.flows.trust import insist, verdict_lines
from lamina.flows.withheld import check_withheld, say, travelling_data
from lamina.lowrank import codec
from lamina.share import hub, hub_upload
from lamina.share.card import FILE as CARD
from lamina.share.card_facts import Form
from lamina.share.hub import HubPlace, Progress
from lamina.share.hub_source import HubSource
from lamina.share.hub_upload import Content, Upload
from lamina.share.parcel import Parcel, parcel_of
from lamina.share.policy import Subject, Verdict, judge
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

_ADAPTER = (codec.CONFIG_FILE, codec.WEIGHTS_FILE)


def push(
    store: Store,
    text: str,
    place: HubPlace,
    reporter: Reporter,
    *,
    with_base: bool = False,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    despite: str | None = None,
) -> dict[str, Any]:
    """Send a stack to a branch of a repository, made where it is not there; one commit, or none.

    Says what of the data goes along before anything does. What the branch has already is not sent
    again; evidence that others put there about the same objects stays.
    `despite`: the reason for going on where a licence forbids to share it.
    Raises UsageError for a bare base, private data, a repository of something else, or one that is
    open where `private` was asked for; CheckError when PEFT or diffusers load another model, or a
    licence forbids it; MissingPartError, ShareError.
    """
    stack = resolve(store, text)
    if not stack.layers:
        raise UsageError(
            f"{text} is a bare base: nothing of it is lamina's to publish",
            hint="name a stack with a layer; a base is pulled from where it comes from",
        )
    store.put_stack(stack.config.base, stack.config.layers)
    parcel = parcel_of(store, stack.digest, with_base=with_base)
    check_withheld(stack, parcel)
    licences = licences_of(store, stack, "share", file="the joined adapter")
    why = check(licences, f"pushing {text}", reporter, despite=despite)
    place.branch  # noqa: B018 - refuses a commit before anything is computed
    repo = place.look_if_there()
    if repo is not None and private and not repo.private:
        raise UsageError(
            f"{place} is open to everybody, and --private does not change that",
            hint="make it private on its page first, or push to a new repository",
        )
    with _work_folder(store) as work:
        reporter.event({"event": "examining", "text": f"exporting {text}, then loading it back"})
        files, certificate = _files(store, stack, place, work, why, licences)
        upload = _planned(store, parcel, place, repo, files, work, reporter)
        data = travelling_data(stack, parcel)
        for row in data:
            reporter.say(f"data that goes along with {say(row)}")
        found = {
            "stack": stack.digest,
            "repo": place.repo,
            "branch": place.branch,
            "files": len(upload.files),
            "bytes": upload.bytes,
            "unchanged": len(upload.unchanged),
            "removed": len(upload.removed),
            "parity": certificate["parity"],
            "data": data,
            "dry_run": dry_run,
        }
        if dry_run:
            return {**found, "commit": upload.parent}
        note = message or f"{stack.label}: stack {short(stack.digest)}, by lamina"
        commit = hub_upload.send(upload, note, private=private, progress=_progress(reporter))
    return {**found, "commit": commit, "changed": commit != upload.parent}


def pull(
    store: Store,
    place: HubPlace,
    reporter: Reporter,
    landing: Landing,
    *,
    on: str | None = None,
    confirm: Confirm | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Bring a stack here from a repository at one commit, shown first, checked on arrival.

    A repository that lamina did not make is taken as a PEFT adapter over the stack that `on` means,
    under its own licence where none is given. Pickles are never fetched.
    Raises UsageError, LayerError, CheckError, GateError, CorruptBlobError, BaseError, ShareError.
    """
    repo = place.look()
    at = f"hf:{repo.name}@{repo.commit}"
    if not hub.is_stack(repo):
        return _adopt(store, place, repo, reporter, landing, on, confirm, licence)
    if on is not None:
        raise UsageError(
            f"{place} is a stack and stands on its own base",
            hint="leave --on out; `lamina rebase` carries a pulled stack to other parents",
        )
    with _work_folder(store) as work, quiet():
        source = HubSource(repo, work, place, _progress(reporter))
        taking = Taking(store, source, at, reporter)
        found = taking.take(source.root.digest, landing, repo.name, confirm)
    if landing.dry_run:
        return found
    return {**found, "commit": repo.commit, "received": taking.moved.bytes + source.fetched}


def _adopt(
    store: Store,
    place: HubPlace,
    repo: HubRepo,
    reporter: Reporter,
    landing: Landing,
    on: str | None,
    confirm: Confirm | None,
    licence: str | None,
) -> dict[str, Any]:
    """A PEFT adapter that another tool pushed becomes a layer."""
    from lamina.flows.importing import Request, take_in

    at = f"hf:{repo.name}@{repo.commit}"
    _check_adapter(repo, at)
    size = sum(repo.sizes.get(name, 0) for name in _ADAPTER)
    shown = {"from": at, "kind": "adapter", "licence": repo.licence, "bytes": size, "over": on}
    text = (
        f"{at} is a PEFT adapter that lamina did not make, {size_text(size)}: no lineage, no "
        f"exams; licence {clean(repo.licence) if repo.licence else 'not stated'}"
    )
    verdict = _unsigned(landing, repo, at)
    text = "\n".join([text, *verdict_lines(verdict)])
    if landing.dry_run:
        return {"pulled": None, "preview": shown, "text": text}
    if verdict is not None and landing.trust is not None:
        insist(landing.trust, verdict)
    if on is None:
        raise UsageError(
            f"{place} is an adapter that lamina did not make: over what does it go?",
            hint=f"name the stack that it was trained over: lamina pull {place} --on STACK",
        )
    if confirm is not None and not confirm(text):
        raise CheckError("nothing was pulled")
    with _work_folder(store) as work:
        folder = bases_hub.download(
            repo,
            work,
            endpoint=place.endpoint,
            progress=_progress(reporter),
            wanted=_ADAPTER,
            raises=ShareError,
        )
        wanted = Request(
            str(folder),
            on,
            landing.name or default_name(store, repo.name, None).name,
            kind="peft",
            licence=licence or repo.licence,
            author=landing.author or repo.name.partition("/")[0],
            override=landing.override,
        )
        found = take_in(store, wanted, reporter)
    base = resolve(store, on).config.base
    return {
        "pulled": at,
        "preview": shown,
        **found,
        "base": base,
        "commit": repo.commit,
        "received": size,
    }


def _unsigned(landing: Landing, repo: HubRepo, at: str) -> Verdict | None:
    """What the trust policy says of an adapter that another tool made: nobody can have signed it as
    lamina does. None where the policy is not to be asked."""
    if landing.trust is None or "pull" not in landing.trust.policy.check:
        return None
    owner, _, name = repo.name.partition("/")
    subject = Subject(
        digest=repo.commit, names=(landing.name or name,), source=at, authors=(owner,)
    )
    return judge(subject, (), landing.trust.policy)


def _check_adapter(repo: HubRepo, at: str) -> None:
    """Refuse what is no PEFT adapter in safetensors, by its file names alone."""
    missing = [name for name in _ADAPTER if name not in repo.files]
    if not missing:
        return
    pickles = [name for name in repo.files if codec.is_pickle(name)]
    if codec.WEIGHTS_FILE in missing and pickles:
        raise LayerError(
            f"{at} has its weights only as pickles, which are never fetched",
            faults=pickles,
            hint="convert it where you trust it: save_pretrained(folder, safe_serialization=True)",
        )
    raise LayerError(
        f"{at} is neither a stack that lamina pushed nor a PEFT adapter",
        faults=[f"no {name}" for name in missing],
        hint="a whole model is a base: lamina base pull hf:org/name",
    )


def _files(
    store: Store,
    stack: ResolvedStack,
    place: HubPlace,
    work: Path,
    despite: str | None,
    licences: Licensed,
) -> tuple[dict[str, Content], dict[str, Any]]:
    """path -> content of all that the repository shall hold, and the adapter's certificate."""
    from lamina.export.vllm import MAX_RANKS  # torch, PEFT
    from lamina.flows.adapters import export

    rank = sum(layer.config.rank for layer in stack.layers)
    target = "vllm" if rank <= MAX_RANKS[-1] else "peft"  # one rank throughout suits every reader
    if stack.draws:
        target = "diffusers"
    adapter, exact = work / "adapter", f"@{stack.digest.removeprefix('sha256:')}"
    with quiet():
        made = export(store, exact, adapter, target, Silent(), despite=despite)
    if made["parity"]["ok"] is None:
        raise MissingPartError(
            f"{stack.label} cannot be compared with the file for others: "
            f"{made['parity']['unproved']}",
            hint="install it and push again, or push to a registry: oci://host/repository",
        )
    certificate = {key: value for key, value in made.items() if key not in ("directory", "use")}
    certificate |= {"licences": licences.to_json()}
    form: Form = "hub-images" if stack.draws else "hub"
    text = card(store, stack, form, certificate=certificate, where=place.repo)
    (adapter / CARD).write_text(text, encoding="utf-8")
    files: dict[str, Content] = {path.name: path for path in sorted(adapter.iterdir())}
    return files, certificate


def _planned(
    store: Store,
    parcel: Parcel,
    place: HubPlace,
    repo: HubRepo | None,
    files: dict[str, Content],
    work: Path,
    reporter: Reporter,
) -> Upload:
    """What has to change in the repository."""
    others: list[Descriptor] = []
    paths: list[str] = []
    if repo is not None and hub.is_stack(repo):
        try:
            source = HubSource(repo, work / "there", place, lambda _: None)
        except StoreError as error:
            reporter.say(f"what lists the stack there is damaged, and is written anew: {error}")
        else:
            for item, named in hub_upload.others_evidence(source, parcel):
                others.append(item)
                paths += named
    return hub_upload.plan(place, repo, files | hub_upload.layout(store, parcel, others), paths)


@contextlib.contextmanager
def _work_folder(store: Store) -> Iterator[Path]:
    """A folder that goes when the block ends; `lamina gc` sweeps what a kill leaves."""
    folder = store.cache_dir / f"{TEMP_PREFIX}hub-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _progress(reporter: Reporter) -> Progress:
    return lambda text: reporter.event({"event": "pulling", "text": text})
