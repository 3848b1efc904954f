"""Whether what is asked suits the stack: one draws, another talks. Said before anything is loaded.

No torch: commands ask here first, so that nobody waits for a refusal.
"""

from collections.abc import Iterable, Sequence

from lamina.core.errors import DataError, UsageError
from lamina.core.recipe import Recipe, ScorerName
from lamina.data.example import Example
from lamina.exams.scorers.registry import SCORERS
from lamina.stack.resolve import ResolvedStack

_OF_WORDS = ("ranks", "known", "checkpointing", "above", "max_length", "overlong")
"""Keys of a recipe that say nothing of images, and are refused where they say something."""


def check_talks(stack: ResolvedStack, what: str, hint: str | None = None) -> None:
    """Raise UsageError where `what` asks for words and the stack draws."""
    if stack.draws:
        raise UsageError(
            f"{stack.label} draws, and {what} is for stacks that talk",
            hint=hint or f'lamina draw {stack.label} "a red fox"',
        )


def check_draws(stack: ResolvedStack) -> None:
    """Raise UsageError for a stack that talks where images are asked for."""
    if not stack.draws:
        raise UsageError(
            f"{stack.label} talks, it does not draw", hint=f"lamina chat {stack.label}"
        )


def check_options(
    stack: ResolvedStack, recipe: Recipe, *, stream: bool = False, memory: int | None = None
) -> None:
    """Raise UsageError listing what a training asks that means nothing over such a stack."""
    if not stack.draws:
        if recipe.diffusion is not None:
            raise UsageError("the recipe's diffusion is about images", hint="leave it out")
    else:
        plain = Recipe()
        faults = [
            f"{key}: {getattr(recipe, key)!r}"
            for key in _OF_WORDS
            if getattr(recipe, key) != getattr(plain, key)
        ]
        faults += ["--stream: image bases are loaded whole"] if stream else []
        faults += ["--memory: what images take is not predicted"] if memory is not None else []
        if faults:
            raise UsageError("not for layers over images", faults=faults, hint="leave them out")
    check_scorers(stack, recipe.exams or ())


def check_scorers(stack: ResolvedStack, scorers: Iterable[ScorerName]) -> None:
    """Raise UsageError for scorers that ask such a stack what it cannot answer."""
    wrong = [each for each in dict.fromkeys(scorers) if SCORERS[each].of_images != stack.draws]
    if wrong:
        fitting = [name for name, each in SCORERS.items() if each.of_images == stack.draws]
        raise UsageError(
            f"{stack.label} {_does(stack)}: it cannot be examined by {', '.join(wrong)}",
            hint=f"scorers for it: {', '.join(fitting)}",
        )


def check_alike(stack: ResolvedStack, other: ResolvedStack, hint: str) -> None:
    """Raise UsageError where one of two draws and the other talks."""
    if stack.draws != other.draws:
        both = f"{stack.label} {_does(stack)}, {other.label} {_does(other)}"
        raise UsageError(both, hint=hint)


def check_successor(stack: ResolvedStack, old: ResolvedStack) -> None:
    """Raise UsageError where a name would go from a stack that talks to one that draws, or back:
    the old one's exams cannot be put to the new one."""
    check_alike(old, stack, f"choose another name, or free this one: lamina rm {old.label}")


def check_rows(stack: ResolvedStack, rows: Sequence[Example]) -> None:
    """Raise DataError for rows without images over a stack that draws, and for images over one that
    talks: their captions alone would be learned."""
    wrong = sum((row.image is not None) != stack.draws for row in rows)
    if not wrong:
        return
    if stack.draws:
        raise DataError(
            f"{wrong} of {len(rows)} rows have no image, and {stack.label} draws",
            hint="it learns from captioned images: a folder or zip of them",
        )
    raise DataError(
        f"{wrong} of {len(rows)} rows are images, and {stack.label} talks",
        hint="name a stack over an image base: lamina base list",
    )


def _does(stack: ResolvedStack) -> str:
    return "draws" if stack.draws else "talks"
