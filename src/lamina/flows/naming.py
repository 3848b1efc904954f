"""Moving a name: the gate decides, the move is one atomic step, and the decision is recorded."""

from lamina.core.digest import short
from lamina.core.errors import GateError
from lamina.core.manifests import NAMING_TYPE, NamingEvidence
from lamina.core.names import Name
from lamina.flows import runs
from lamina.flows.examine import Examination
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store


def name_stack(
    store: Store,
    stack: ResolvedStack,
    name: Name,
    examination: Examination,
    *,
    override: str | None,
    author: str | None,
    retry_with: str,
) -> int:
    """Point `name` at `stack` if the gate passes, or with an override and its reason on record.

    Returns the version. Raises GateError listing what got worse, StoreError when somebody else
    moved the name since it was examined.
    """
    verdict = examination.verdict
    if not verdict.passed and not override:
        raise GateError(
            f"{name} was not moved: inherited exams got significantly worse",
            faults=verdict.reasons,
            hint=f"the stack is kept as @{short(stack.digest)}; "
            f"to name it all the same: {retry_with}",
        )
    if examination.previous == stack.digest:
        return store.move(name.name, stack.descriptor, expected=stack.digest)
    version = store.move(name.name, stack.descriptor, expected=examination.previous)
    record = NamingEvidence(
        created=runs.now().isoformat(),
        name=name.name,
        version=version,
        previous=examination.previous,
        compared_with=examination.compared_with,
        verdict=verdict.model_dump(mode="json"),
        override=None if verdict.passed else override,
        author=author,
    )
    store.put_evidence(NAMING_TYPE, record, stack.descriptor)
    return version
