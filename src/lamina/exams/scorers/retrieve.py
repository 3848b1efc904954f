"""retrieve: of four captions, is an image's own the one under which its noise is told best?"""

from collections.abc import Sequence

from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress, painter
from lamina.exams.scorers.denoise import fault
from lamina.exams.scorers.scorer import ACCURACY, Scorer

CAPTIONS = 4
"""An image's own and those of the next questions."""


def foils(captions: Sequence[str], place: int) -> list[str]:
    """The next other captions after `place`, round the end."""
    turned = [*captions[place + 1 :], *captions[:place]]
    others = dict.fromkeys(text for text in turned if text != captions[place])
    return list(others)[: CAPTIONS - 1]


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """Value 1 where the own caption is the likeliest; weight 0 where there is no other caption."""
    examples = [item.example for item in items if item.example]
    captions = [example.text or "" for example in examples]
    found = []
    for place, example in enumerate(examples):
        asked = [captions[place], *foils(captions, place)]
        if len(asked) == 1:
            found.append(ItemScore(value=0.0, weight=0.0))
            continue
        losses = [each.nll for each in painter(examinee).caption_scores(example, asked)]
        best = losses.index(min(losses))
        found.append(ItemScore(value=float(best == 0), answer=asked[best]))
        progress(place + 1, len(examples))
    return tuple(found)


RETRIEVE = Scorer(
    "retrieve",
    ACCURACY,
    higher_is_better=True,
    generates=False,
    fault=fault,
    score=score,
    of_images=True,
    tells=lambda items: len({item.example.text for item in items if item.example}) > 1,
)
