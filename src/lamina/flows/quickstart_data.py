"""The quickstart's two data sets, made on the user's machine from PyPI packages.

Tool use: the Berkeley function-calling questions in the wheel `bfcl-eval` (Apache-2.0), read out
of the wheel, which is never installed. Reasoning: reasoning-gym (Apache-2.0), generated from a
seed, each answer checked by the package's own verifier.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.bases.wheels import download_wheel, read_member
from lamina.core.errors import MissingPartError
from lamina.core.files import atomic_write
from lamina.core.report import Reporter
from lamina.core.seeds import derive

WHEEL = "bfcl-eval"
CATEGORIES = ("live_simple", "multiple", "simple_python")
LONGEST_ROW = 1600
"""Characters of a row's JSON; longer ones (huge schemas) cost more time than they teach."""

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}

REASONING_TASKS: dict[str, dict[str, Any]] = {
    "needle_haystack": {"min_num_statements": 3, "max_num_statements": 8},
    "family_relationships": {},
    "number_format": {},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
}
ROWS_A_TASK = 400
SEED = 20260101


def tool_use_rows(directory: Path, reporter: Reporter) -> Path:
    """`tools.jsonl`: one function-calling question a row, with its accepted calls."""
    target = directory / "tools.jsonl"
    if target.exists():
        return target
    reporter.event({"event": "pulling", "text": f"fetching {WHEEL} (data only, 2 MB)"})
    directory.mkdir(parents=True, exist_ok=True)
    wheel = download_wheel(WHEEL, directory)
    rows = list(_bfcl_rows(wheel))
    atomic_write(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return target


def _bfcl_rows(wheel: Path) -> Iterator[dict[str, Any]]:
    for category in CATEGORIES:
        stem = f"BFCL_v4_{category}.json"
        questions = _lines(wheel, f"bfcl_eval/data/{stem}")
        answers = {
            row["id"]: row["ground_truth"]
            for row in _lines(wheel, f"bfcl_eval/data/possible_answer/{stem}")
        }
        for question in questions:
            said = " ".join(turn["content"] for turn in question["question"][0])
            calls = [
                {name: _grounded(arguments, said) for name, arguments in call.items()}
                for call in answers.get(question["id"], [])
            ]
            if not calls or any(None in call.values() for call in calls):
                continue
            row = _bfcl_row(question, calls, answers[question["id"]])
            if len(json.dumps(row)) <= LONGEST_ROW:
                yield row


def _lines(wheel: Path, member: str) -> list[dict[str, Any]]:
    path = read_member(wheel, member, wheel.parent / member.replace("/", "-"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bfcl_row(
    question: dict[str, Any], calls: list[dict[str, Any]], accepted: list[dict[str, Any]]
) -> dict[str, Any]:
    """One question as an OpenAI chat row, with the target calls and all accepted ones."""
    return {
        "messages": [
            *question["question"][0],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": name, "arguments": json.dumps(arguments)},
                    }
                    for call in calls
                    for name, arguments in call.items()
                ],
            },
        ],
        "tools": [{"type": "function", "function": _schema(f)} for f in question["function"]],
        "accept_calls": accepted,
    }


def _grounded(arguments: dict[str, list[Any]], said: str) -> dict[str, Any] | None:
    """Arguments that are single values read off the question; None when one is not.

    {"unit": ["", "km"], "n": [3]} -> {"n": 3}: what may be left out is left out. Some accepted
    values follow from convention alone ("Paris, France", ISO dates); asking a small model for
    those would measure what it knows, not whether it can call a function.
    """
    chosen = {}
    for name, values in arguments.items():
        if not values or "" in values:
            continue
        found = next((value for value in values if _is_said(value, said.casefold())), None)
        if found is None:
            return None
        chosen[name] = found
    return chosen


def _is_said(value: Any, said: str) -> bool:
    """Whether a single value stands in the question; lists, objects and truth values never do."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    text = str(value).casefold()
    return re.search(rf"(?<![\w.]){re.escape(text)}(?![\w])", said) is not None


def _schema(node: Any) -> Any:
    """BFCL's Python type names as JSON schema's."""
    if isinstance(node, dict):
        return {
            key: _JSON_TYPES.get(value, value)
            if key == "type" and isinstance(value, str)
            else _schema(value)
            for key, value in node.items()
        }
    return [_schema(item) for item in node] if isinstance(node, list) else node


def reasoning_rows(directory: Path, reporter: Reporter) -> Path:
    """`reasoning.jsonl`: generated puzzles with short answers, interleaved by task."""
    target = directory / "reasoning.jsonl"
    if target.exists():
        return target
    try:
        import reasoning_gym
    except ImportError:
        raise MissingPartError(
            "the quickstart's reasoning data comes from reasoning-gym, which is not installed",
            hint="pip install 'lamina[quickstart]'",
        ) from None
    reporter.event({"event": "pulling", "text": "generating reasoning puzzles"})
    sets = [
        reasoning_gym.create_dataset(task, size=ROWS_A_TASK, seed=derive(SEED, task) % 2**31, **how)
        for task, how in REASONING_TASKS.items()
    ]
    rows = []
    for items in zip(*sets, strict=True):
        for dataset, item in zip(sets, items, strict=True):
            answer = str(item["answer"])
            if dataset.score_answer(answer, item) >= 1.0:  # a few verifiers reject their own
                rows.append(_chat_row(re.sub(r"\s+\n", "\n", item["question"]).strip(), answer))
    atomic_write(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return target


def _chat_row(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "accept": [answer],
    }
