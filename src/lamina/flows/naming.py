"""Moving a name: the gate decides, the move is one atomic step, and the decision is recorded."""

from lamina.core.errors import GateError, UsageError, WrongParentError
from lamina.core.evidence import NAMING_TYPE, NamingEvidence
from lamina.core.names import LATEST, Name, parse_name
from lamina.flows import runs
from lamina.flows.examine import Examination
from lamina.stack.resolve import ResolvedStack, check_parents
from lamina.store.layout import Store


def new_name(store: Store, text: str) -> Name:
    """A name that may be given to a stack: without a tag, and no base's. Raises UsageError."""
    name = parse_name(text)
    if name.tag != LATEST or name.name in store.bases():
        raise UsageError(
            f"{text}: give a plain name that is no base",
            hint="versions are counted by lamina: support becomes support:v1, support:v2, …",
        )
    return name


def name_stack(
    store: Store,
    stack: ResolvedStack,
    name: Name,
    examination: Examination,
    *,
    override: str | None,
    author: str | None,
    kept_as: str,
    retry_with: str,
    despite: str | None = None,
) -> int:
    """Point `name` at `stack` if the gate passes, or with an override and its reason on record.

    `despite`: a reason that goes on record beside the gate's.
    Returns the version. Raises GateError listing what got worse, StoreError when somebody else
    moved the name since it was examined.
    """
    verdict = examination.verdict
    if not verdict.passed and not override:
        raise GateError(
            f"{name} was not moved: inherited exams got significantly worse",
            faults=verdict.reasons,
            hint=f"the stack is kept as {kept_as}; to name it all the same: {retry_with}",
        )
    stored = store.put_stack(stack.config.base, stack.config.layers)
    version = store.move(name.name, stored, expected=examination.previous)
    if examination.previous == stack.digest and _recorded(store, stack, name.name, version):
        return version
    reasons = [] if verdict.passed else [override]
    record = NamingEvidence(
        created=runs.now().isoformat(),
        name=name.name,
        version=version,
        previous=examination.previous,
        compared_with=examination.compared_with,
        verdict=verdict.model_dump(mode="json"),
        override="; ".join(filter(None, [*reasons, _forced(stack)])) or None,
        despite=despite,
        author=author,
    )
    store.put_evidence(NAMING_TYPE, record, stored)
    return version


def on_record(store: Store, stack: ResolvedStack, name: Name) -> bool:
    """Whether the last move of `name`, to `stack`, is on record; a kill may have come between."""
    versions = [
        version
        for tag, target in store.names().get(name.name, {}).items()
        if target.digest == stack.digest and (version := Name(name.name, tag).version)
    ]
    return not versions or _recorded(store, stack, name.name, max(versions))


def _recorded(store: Store, stack: ResolvedStack, name: str, version: int) -> bool:
    """Whether this move is on record: a kill may have come between the move and its record."""
    records = store.evidence(stack.digest, NAMING_TYPE, NamingEvidence)
    return any(record.name == name and record.version == version for record in records)


def _forced(stack: ResolvedStack) -> str | None:
    """What --force let pass, if anything."""
    try:
        check_parents(stack)
    except WrongParentError as error:
        return "--force: " + "; ".join(error.faults)
    return None
