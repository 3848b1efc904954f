"""Every scorer by its name."""

from collections.abc import Mapping
from types import MappingProxyType

from lamina.core.recipe import ScorerName
from lamina.exams.scorers.choice import CHOICE
from lamina.exams.scorers.colour import COLOUR
from lamina.exams.scorers.denoise import DENOISE
from lamina.exams.scorers.exact import EXACT
from lamina.exams.scorers.loss import LOSS
from lamina.exams.scorers.numeric import NUMERIC
from lamina.exams.scorers.retrieve import RETRIEVE
from lamina.exams.scorers.scorer import Scorer
from lamina.exams.scorers.tool_call import TOOL_CALL

SCORERS: Mapping[ScorerName, Scorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (LOSS, EXACT, NUMERIC, CHOICE, TOOL_CALL, DENOISE, RETRIEVE, COLOUR)
    }
)
