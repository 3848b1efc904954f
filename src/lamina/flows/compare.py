"""`lamina diff`: what two stacks are made of, and their answers side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.digest import short
from lamina.core.report import Reporter
from lamina.data.example import Message
from lamina.exams.examinee import Prompt
from lamina.flows.examinee import StackExaminee
from lamina.flows.questions import ANSWER_TOKENS, probe_prompts
from lamina.flows.suiting import check_alike, check_talks
from lamina.stack.compile import compile_stack, device_at_hand
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store
from lamina.tokens.tools import render_answer


@dataclass(frozen=True)
class Difference:
    """Layers and answers of two stacks."""

    stacks: tuple[ResolvedStack, ResolvedStack]
    asked: tuple[str, ...]
    answers: tuple[tuple[str, ...], tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        a, b = self.stacks
        return {
            "a": {"stack": a.digest, "layers": [layer.digest for layer in a.layers]},
            "b": {"stack": b.digest, "layers": [layer.digest for layer in b.layers]},
            "answers": [
                {"prompt": prompt, "a": one, "b": two, "same": one == two}
                for prompt, one, two in zip(self.asked, *self.answers, strict=True)
            ],
        }

    def render(self) -> str:
        """For people."""
        lines = []
        shared = {layer.digest for layer in self.stacks[0].layers}
        shared &= {layer.digest for layer in self.stacks[1].layers}
        for stack in self.stacks:
            parts = [
                f"{'=' if layer.digest in shared else '*'} {layer.config.name} "
                f"@{short(layer.digest)}"
                for layer in stack.layers
            ]
            base = f"base @{short(stack.config.base)}"
            lines.append(f"{stack.label}: " + " > ".join([base, *parts]))
        same = sum(one == two for one, two in zip(*self.answers, strict=True))
        lines.append(f"{len(self.asked)} questions, {same} answered alike")
        for prompt, one, two in zip(self.asked, *self.answers, strict=True):
            lines += ["", f"? {prompt}", f"  {self.stacks[0].label}: {one}"]
            lines.append("  (the same)" if one == two else f"  {self.stacks[1].label}: {two}")
        return "\n".join(lines)


def compare(
    store: Store,
    a: str,
    b: str,
    prompts: Sequence[str],
    rows: int,
    reporter: Reporter,
) -> Difference:
    """Ask both stacks the same: `prompts`, or some questions of the exams that they carry.

    Raises UsageError for one that draws.
    """
    stacks = resolve(store, a), resolve(store, b)
    check_alike(*stacks, "give two stacks of one kind")
    check_talks(stacks[0], "a comparison of answers", f"lamina exam {a} --against {b}")
    asked = [Prompt((Message(role="user", content=text),)) for text in prompts]
    if not asked:
        found = dict.fromkeys(
            prompt for stack in stacks for prompt in probe_prompts(store, stack, rows)
        )
        asked = [Prompt(messages, tools) for messages, tools in found]
    answers = tuple(ask(store, stack, asked, reporter) for stack in stacks)
    return Difference(stacks, tuple(map(shown, asked)), (answers[0], answers[1]))


def ask(
    store: Store, stack: ResolvedStack, asked: Sequence[Prompt], reporter: Reporter
) -> tuple[str, ...]:
    """A stack's greedy answers, in order."""

    def progress(done: int, total: int) -> None:
        text = f"asking {stack.label}: {done}/{total}"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    examinee = StackExaminee(compile_stack(store, stack, device=device_at_hand()))
    return tuple(examinee.answer(asked, max(ANSWER_TOKENS.values()), progress))


def shown(prompt: Prompt) -> str:
    """The last turn of a prompt, for people."""
    last = prompt.messages[-1]
    return render_answer(last.content, last.tool_calls)
