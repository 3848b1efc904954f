"""The same verbs as the command line, from Python.

    import lamina
    agent = lamina.load("smollm2-135m").train("tools.jsonl", name="agent")
    agent.exam()
    print(agent.chat("What can you do?"))

Every method raises the exceptions of `lamina.core.errors`. The store is the one the command line
uses, or the folder given as `home`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.cli.environment import home as default_home
from lamina.cli.environment import trust
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter, Silent
from lamina.store.layout import Store

if TYPE_CHECKING:
    from lamina.flows.examine import Examination
    from lamina.flows.reviewed import Report
    from lamina.share.wire import Access

__all__ = ["Stack", "accept", "load", "merge", "pull", "review"]


class Stack:
    """A stack by name or digest. Immutable: `train` returns another one."""

    def __init__(self, store: Store, name: str, reporter: Reporter) -> None:
        from lamina.stack.resolve import resolve

        self._store, self.name, self._reporter = store, name, reporter
        found = resolve(store, name)
        self.digest = found.digest
        own = found.descriptor if found.layers else found.base
        self._reference = f"@{own.digest.removeprefix('sha256:')}"  # the name may move on

    def __repr__(self) -> str:
        return f"lamina.Stack({self.name!r}, {self.digest[7:19]})"

    def train(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        name: str,
        recipe: Recipe | None = None,
        **options: Any,
    ) -> "Stack":
        """Train a layer over this stack; the new stack, named `name` if the gate passes.

        `options` are the other fields of `lamina.flows.learn.Request` (format, skip_bad, private,
        licence, author, exam_files, accept_regression, force) and, by their own names, of `Recipe`
        (rank, lr, epochs, max_minutes, …). Raises UsageError for any other name.
        """
        from lamina.flows import learn

        given = [data] if isinstance(data, str | Path) else list(data)
        known = set(learn.Request.__dataclass_fields__) - {"on", "data", "name", "recipe"}
        fields = {k: v for k, v in options.items() if k in known}
        rest = {k: v for k, v in options.items() if k not in fields}
        base = (recipe or Recipe()).model_dump()
        request = learn.Request(
            on=self._reference,
            data=[str(path) for path in given],
            name=name,
            recipe=Recipe.parse(base | rest, "the recipe"),
            **fields,
        )
        run = learn.prepare(self._store, request, self._reporter)
        learned = learn.execute(self._store, run, self._reporter)
        return Stack(self._store, str(learned.name), self._reporter)

    def update(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        layer: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> "Stack":
        """A new version of a layer (the top one) from new rows; this stack where all were known.

        `options` are the other fields of `lamina.flows.update.Request` and, by their own names, of
        `Recipe`. Raises UsageError for any other name.
        """
        from lamina.flows import learn, update

        given = [data] if isinstance(data, str | Path) else list(data)
        known = set(update.Request.__dataclass_fields__) - {"stack", "data", "overrides"}
        fields = {k: v for k, v in options.items() if k in known}
        rest = tuple((k, v) for k, v in options.items() if k not in fields)
        request = update.Request(
            stack=self.name,
            data=[str(path) for path in given],
            layer=layer,
            name=name,
            overrides=rest,
            **fields,
        )
        run = update.prepare(self._store, request, self._reporter)
        if run is None:
            return self
        learned = learn.execute(self._store, run, self._reporter)
        return Stack(self._store, str(learned.name), self._reporter)

    def refresh(self, **options: Any) -> "Stack":
        """This stack's name over the new versions of its layers.

        Options: keep, at_most, override, author (see `lamina.flows.refresh.refresh`).
        """
        from lamina.flows.refresh import refresh

        name = self.name.partition(":")[0]  # a version stays what it is; its name moves
        done = refresh(self._store, name, self._reporter, lambda: False, **options)
        return (
            self if done.named is None else Stack(self._store, str(done.named.name), self._reporter)
        )

    def rebase(self, onto: "Stack | str", *, name: str | None = None, **options: Any) -> "Stack":
        """Its layers over other parents or another base.

        Options: the other fields of `lamina.flows.rebase.Request`.
        """
        from lamina.flows import rebase

        target = onto._reference if isinstance(onto, Stack) else onto
        request = rebase.Request(stack=self.name, onto=target, name=name, **options)
        done = rebase.rebase(self._store, request, self._reporter, lambda: False)
        return Stack(self._store, str(done.named.name), self._reporter)

    def squash(self, *, name: str | None = None, **options: Any) -> "Stack":
        """All its layers as one. Options: rank (and passes) or tolerance, override, despite,
        author."""
        from lamina.flows.squash import squash

        done = squash(self._store, self.name, name=name, reporter=self._reporter, **options)
        return Stack(self._store, str(done["name"]), self._reporter)

    def exam(
        self, *, against: str | None = None, files: Sequence[str] = (), fresh: bool = False
    ) -> "Examination":
        """Every exam of every layer, compared with the parent stack (or `against`)."""
        from lamina.flows.examine import examine_stack

        return examine_stack(
            self._store, self._reference, self._reporter, against=against, files=files, fresh=fresh
        )

    def chat(self, text: str, **options: Any) -> str:
        """One answer. Options: system, temperature, top_p, seed, max_tokens."""
        from lamina.flows.talk import Conversation

        return "".join(Conversation(self._store, self._reference, **options).ask(text))

    def export(self, directory: str | Path, *, to: str, **options: Any) -> dict[str, Any]:
        """Write it for another tool ('peft', 'hf', 'gguf', …), checked against its own logits.

        Options: precision, accept_loss, commercial, despite (see `lamina.flows.adapters.export`).
        """
        from lamina.flows.adapters import export

        return export(self._store, self._reference, Path(directory), to, self._reporter, **options)

    def propose(self, place: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Pack its top layer for somebody who has those beneath, as a file or as oci://….

        Options: onto, note, author, whole, despite, access (see `lamina.flows.propose.propose`).
        """
        from lamina.flows.propose import propose

        target = None if place is None else str(place)
        return propose(self._store, self.name, target, self._reporter, **options)

    def push(self, place: str, *, with_base: bool = False, force: bool = False) -> dict[str, Any]:
        """Send it to a registry (`oci://host/repository[:tag]`); what was sent.

        Raises ShareError, CheckError when the tag has moved meanwhile.
        """
        from lamina.cli.environment import access
        from lamina.flows.publish import push

        return push(
            self._store,
            self._reference,
            place,
            access(),
            self._reporter,
            with_base=with_base,
            force=force,
        )

    def show(self) -> dict[str, Any]:
        """Everything recorded about it and its layers."""
        from lamina.flows.inventory import describe

        return describe(self._store, self._reference)


def load(name: str, *, home: str | Path | None = None, reporter: Reporter | None = None) -> Stack:
    """A stack, or a base as the stack of no layers, by name or @digest.

    Raises UnknownNameError, WrongParentError, StoreError.
    """
    return Stack(_store(home), name, reporter or Silent())


def merge(stacks: Sequence[Stack], *, name: str, method: str = "concat", **options: Any) -> Stack:
    """Parallel stacks as one layer over their common parent.

    Options: weights, density, examples, seed, override, despite, author (see
    `lamina.flows.merge.merge`).
    """
    from lamina.flows.merge import merge as run

    first = stacks[0]
    texts = [stack._reference for stack in stacks]
    done = run(first._store, texts, method=method, name=name, reporter=first._reporter, **options)
    return Stack(first._store, str(done["name"]), first._reporter)


def review(
    place: str | Path,
    *,
    onto: str | None = None,
    reviewer: str | None = None,
    access: "Access | None" = None,
    home: str | Path | None = None,
    reporter: Reporter | None = None,
) -> "Report":
    """Look at a proposal, and sit its exams here; `accepted` says whether anything is against it.

    `access` is needed for registries. Raises UsageError, ShareError, UnknownNameError.
    """
    from lamina.flows.offers import offered
    from lamina.flows.review import review as run

    with offered(str(place), access) as what:
        return run(
            _store(home), what, reporter or Silent(), onto=onto, reviewer=reviewer, trust=trust()
        )


def accept(
    place: str | Path,
    *,
    name: str | None = None,
    access: "Access | None" = None,
    home: str | Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Stack:
    """Move a name to a proposal, which is reviewed first unless it was here.

    Options: override, despite, author (see `lamina.flows.accept.accept`). Raises CheckError,
    GateError, UsageError, ShareError.
    """
    from lamina.flows.accept import accept as run
    from lamina.flows.offers import offered

    store, reporter = _store(home), reporter or Silent()
    with offered(str(place), access) as what:
        done = run(store, what, reporter, name=name, trust=trust(), **options)
    return Stack(store, str(done["name"]), reporter)


def pull(
    source: str,
    *,
    name: str | None = None,
    quantise: str | None = None,
    home: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Stack:
    """Fetch a base into the store and return it; `quantise` ('nf4', 'int8') packs its linears.

    A `source` that begins with oci:// is a stack in a registry, which is named through the gate.
    Raises BaseError, UsageError, MissingPartError, ShareError, GateError, TrustError.
    """
    from lamina.flows.bases import pull as run

    store, reporter = _store(home), reporter or Silent()
    if source.startswith("oci://"):
        return _pull_stack(store, source, name, reporter)
    pulled = run(store, source, name, reporter, quantise=quantise)
    return Stack(store, pulled.name, reporter)


def _pull_stack(store: Store, place: str, name: str | None, reporter: Reporter) -> Stack:
    from lamina.cli import environment
    from lamina.flows.publish import Landing
    from lamina.flows.publish import pull as run

    access = environment.access()
    landing = Landing(name=name, author=environment.author(), trust=environment.trust())
    pulled = run(store, place, access, reporter, landing)
    return Stack(store, pulled["name"], reporter)


def _store(home: str | Path | None) -> Store:
    return Store.open(Path(home) if home is not None else default_home())
