"""What a row that a stack wrote must be like to be kept."""

import json
from collections import Counter
from collections.abc import Sequence

from lamina.data.example import Example
from lamina.data.filters import Forbidden, Said, asked, clean, loops
from lamina.tokens.tools import CALL_OPEN, function_schema

QUESTION, FUNCTIONS = "Question:", "Functions:"
"""What stands before questions and functions in the list that a stack goes on with."""
NO_QUESTION = (CALL_OPEN, QUESTION, FUNCTIONS)
"""What no question starts with."""


class Screen:
    """Lets a row pass that is worth keeping, and counts why others are not."""

    def __init__(self, forbidden: Sequence[Example]) -> None:
        self._forbidden = Forbidden(forbidden)
        self._said = Said()
        self.dropped: Counter[str] = Counter()

    def question(self, row: Example) -> bool:
        """Whether a question is worth answering."""
        return self._passes(self._fault(row))

    def answer(self, row: Example) -> bool:
        """Whether a whole row is worth keeping; it is remembered."""
        fault = self._fault(row) or _answer_fault(row)
        if not fault and not self._said.add("\n".join(asked(row))):
            fault = "said before"
        return self._passes(fault)

    def lost(self, rows: int, why: str) -> None:
        """Count rows that did not get here."""
        self.dropped[why] += rows

    def summary(self) -> str:
        """Counts and reasons, the most frequent first."""
        return ", ".join(f"{n} {why}" for why, n in self.dropped.most_common() if n)

    def _fault(self, row: Example) -> str:
        texts = list(asked(row))
        if not all(map(clean, texts)):
            return "unreadable"
        if any(map(loops, texts)):
            return "going in circles"
        calls = tuple(f"{schema.get('name')}(" for schema in map(function_schema, row.tools))
        if any(text.startswith(NO_QUESTION) or any(c in text for c in calls) for text in texts):
            return "no question"
        return "too close to a forbidden row" if self._forbidden.repeated_by(row) else ""

    def _passes(self, fault: str) -> bool:
        self.dropped[fault] += bool(fault)
        return not fault


def _answer_fault(row: Example) -> str:
    """What is wrong with the last answer of a row, '' where nothing is."""
    answer = row.answer
    if answer is None:
        return ""
    if answer.content and not clean(answer.content):
        return "unreadable"
    if loops(answer.content):
        return "going in circles"
    given = {schema.get("name"): schema for schema in map(function_schema, row.tools)}
    for call in answer.tool_calls:
        if call.name not in given:
            return "calling a function that is not there"
        parameters = given[call.name].get("parameters") or {}
        known = parameters.get("properties")
        if known and not set(json.loads(call.arguments)) <= set(known):
            return "calling a function with unknown arguments"
    return ""
