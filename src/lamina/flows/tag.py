"""`lamina tag`: examine a stack against what the name points at, and move the name."""

from typing import Any

from lamina.core.report import Reporter
from lamina.flows.examine import examine_for_gate
from lamina.flows.naming import name_stack, new_name
from lamina.stack.resolve import resolve
from lamina.store.layout import Store


def tag(
    store: Store,
    text: str,
    name_text: str,
    reporter: Reporter,
    *,
    override: str | None,
    author: str | None,
    force: bool = False,
) -> dict[str, Any]:
    """Point a name at a stack through the gate. Raises GateError, UsageError, StoreError."""
    name = new_name(store, name_text)
    stack = resolve(store, text, force=force)
    examination = examine_for_gate(store, stack, None, name.name, reporter)
    version = name_stack(
        store,
        stack,
        name,
        examination,
        override=override,
        author=author,
        kept_as=text,
        retry_with=f'lamina tag {text} {name} --accept-regression "why"',
    )
    return {"name": str(name.at_version(version)), "stack": stack.digest}
