"""Results to what people and programs read: scores, comparisons, and the matrix stacks x exams."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypedDict

from lamina.core.digest import short
from lamina.core.scores import Comparison, Score
from lamina.exams import statistics
from lamina.exams.runner import ExamResult
from lamina.exams.scorers.scorer import ACCURACY
from lamina.exams.tasks import Exam

Change = Literal["better", "worse"]
MARKED_AT = 0.05
"""A change is marked where its one-sided p-value is at most this, without correction for many
exams: whatever the gate refuses at its default is marked, not everything marked is refused."""
MARKS: dict[Change, str] = {"better": "▲", "worse": "▼"}
LEGEND = (
    "value [95% interval]; "
    f"{MARKS['better']} better, {MARKS['worse']} worse than the row above "
    f"(paired test, one-sided p ≤ {MARKED_AT}); - not examined"
)
_NO_CELL = "-"
_GAP = "  "


class Cell(TypedDict):
    """One stack's result on one exam."""

    stack: str
    exam: str
    metric: str
    value: float
    ci: tuple[float, float]
    n: int
    change: Change | None
    """Significant change against the stack above; None also where there is none to compare."""


class Matrix(TypedDict):
    """Every stack's result on every exam; a cell is absent where the exam was not sat."""

    stacks: list[str]
    exams: list[str]
    cells: list[Cell]


def score_of(result: ExamResult) -> Score:
    """One stack's value with its interval on one exam."""
    estimate = statistics.score(result.items)
    exam = result.exam
    return Score(
        exam=exam.name,
        layer=exam.layer,
        exam_digest=exam.digest,
        metric=exam.scorer.metric,
        value=estimate.value,
        ci=estimate.ci,
        n=estimate.n,
        higher_is_better=exam.scorer.higher_is_better,
    )


def comparisons(
    before: Sequence[ExamResult], after: Sequence[ExamResult]
) -> tuple[Comparison, ...]:
    """Two stacks on the exams that both sat, question by question, in the order of `after`."""
    sat = {result.exam.key: result for result in before}
    return tuple(
        _compare(sat[result.exam.key], result) for result in after if result.exam.key in sat
    )


def _compare(before: ExamResult, after: ExamResult) -> Comparison:
    exam = after.exam
    paired = statistics.compare(before.items, after.items, exam.scorer.higher_is_better)
    return Comparison(
        exam=exam.name,
        layer=exam.layer,
        exam_digest=exam.digest,
        metric=exam.scorer.metric,
        before=paired.before,
        after=paired.after,
        delta=paired.delta,
        ci=paired.ci,
        p_worse=paired.p_worse,
        p_better=paired.p_better,
        n=paired.n,
        higher_is_better=exam.scorer.higher_is_better,
    )


# -- the matrix ------------------------------------------------------------------------------------


def matrix(rows: Sequence[tuple[str, Sequence[ExamResult]]], columns: Sequence[Exam]) -> Matrix:
    """The matrix of (stack, its results) rows, in their order, and of exams.

    Exams with one key share a column; exams with one name but other questions are told apart by
    their digest. Each row is compared with the row above it.
    """
    exams = {exam.key: exam for exam in reversed(columns)}
    order = dict.fromkeys(exam.key for exam in columns)
    used = Counter(exam.name for exam in exams.values())
    labels = {
        key: exams[key].name
        if used[exams[key].name] == 1
        else f"{exams[key].name}@{short(exams[key].digest)}"
        for key in order
    }
    cells: list[Cell] = []
    above: dict[tuple[str, str, int], ExamResult] = {}
    for stack, results in rows:
        found = {result.exam.key: result for result in results}
        cells += [
            _cell(stack, labels[key], found[key], above.get(key)) for key in order if key in found
        ]
        above = found
    return Matrix(stacks=[stack for stack, _ in rows], exams=list(labels.values()), cells=cells)


def _cell(stack: str, exam: str, result: ExamResult, above: ExamResult | None) -> Cell:
    found = score_of(result)
    return Cell(
        stack=stack,
        exam=exam,
        metric=found.metric,
        value=found.value,
        ci=found.ci,
        n=found.n,
        change=change(_compare(above, result)) if above else None,
    )


def change(comparison: Comparison) -> Change | None:
    """Whether a comparison is marked, and how (see `MARKED_AT`)."""
    if comparison.p_worse <= MARKED_AT:
        return "worse"
    return "better" if comparison.p_better <= MARKED_AT else None


def value_text(metric: str, value: float) -> str:
    """`82.5%` for accuracies, `1.234` for losses."""
    return f"{value:.1%}" if metric == ACCURACY else f"{value:.3f}"


def interval_text(metric: str, ci: tuple[float, float]) -> str:
    """`[70.1, 90.3]` in per cent for accuracies, `[1.201, 1.267]` for losses."""
    low, high = (f"{100 * v:.1f}" if metric == ACCURACY else f"{v:.3f}" for v in ci)
    return f"[{low}, {high}]"


def render_matrix(table: Matrix, width: int = 100) -> str:
    """The matrix as plain text, at most `width` wide where a single exam fits.

    Exams that do not fit side by side follow in further blocks. Ends with the legend.
    """
    texts = {(cell["stack"], cell["exam"]): _cell_text(cell) for cell in table["cells"]}
    sizes = {cell["exam"]: cell["n"] for cell in table["cells"]}
    columns = []
    for exam in table["exams"]:
        head = f"n = {sizes[exam]}" if exam in sizes else ""
        body = [texts.get((stack, exam), _NO_CELL) for stack in table["stacks"]]
        columns.append(_pad([exam, head, *body]))
    names = _pad(["stack", "", *table["stacks"]])
    blocks = [
        "\n".join(_GAP.join(parts).rstrip() for parts in zip(names, *block, strict=True))
        for block in _blocks(columns, width - len(names[0]))
    ]
    return "\n\n".join([*blocks, LEGEND])


def _cell_text(cell: Cell) -> str:
    mark = f" {MARKS[cell['change']]}" if cell["change"] else ""
    value = value_text(cell["metric"], cell["value"])
    return f"{value} {interval_text(cell['metric'], cell['ci'])}{mark}"


def _pad(lines: Sequence[str]) -> list[str]:
    size = max(map(len, lines))
    return [line.ljust(size) for line in lines]


def _blocks(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Columns put side by side while they fit into `width`; at least one a block."""
    blocks: list[list[list[str]]] = [[]]
    left = width
    for column in columns:
        size = len(_GAP) + len(column[0])
        if blocks[-1] and size > left:
            blocks.append([])
            left = width
        blocks[-1].append(column)
        left -= size
    return blocks
