"""colour: is what a stack draws for a caption nearest, in its colours, to the caption's own image?

Colours are means of 4 x 4 squares: what is where, and of which colour, but no detail.
"""

from collections.abc import Sequence

from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress, painter
from lamina.exams.scorers.denoise import fault
from lamina.exams.scorers.retrieve import CAPTIONS
from lamina.exams.scorers.scorer import ACCURACY, Scorer


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """Value 1 where the own image is the nearest of four; weight 0 where it is the only one."""
    examples = [item.example for item in items if item.example]
    drawn = painter(examinee).colours_drawn([each.text or "" for each in examples], progress)
    real = painter(examinee).colours_of(examples)
    found = []
    for place, own in enumerate(drawn):
        others = [*range(place + 1, len(real)), *range(place)][: CAPTIONS - 1]
        if not others:
            found.append(ItemScore(value=0.0, weight=0.0))
            continue
        nearest = min([place, *others], key=lambda n: _distance(own, real[n]))
        found.append(ItemScore(value=float(nearest == place)))
    return tuple(found)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


COLOUR = Scorer(
    "colour",
    ACCURACY,
    higher_is_better=True,
    generates=False,
    fault=fault,
    score=score,
    of_images=True,
    tells=lambda items: len(items) > 1,
)
