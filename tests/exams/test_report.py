import json

from lamina.core.digest import canonical_json
from lamina.core.scores import ItemScore
from lamina.exams.report import LEGEND, matrix, render_matrix
from lamina.exams.runner import ExamResult
from tests.exams.fakes import exam_item, exam_of

N = 40
CAPITALS = exam_of([exam_item(str(n), "x", accept=("x",)) for n in range(N)], "exact", "capitals")
GERMAN = exam_of([exam_item(f"Nr. {n}", "ja") for n in range(3)], "loss", "german")


def right(exam, count):
    scores = [ItemScore(value=float(n < count)) for n in range(exam.spec.rows)]
    return ExamResult(exam, tuple(scores))


def losses(exam, *values):
    return ExamResult(exam, tuple(ItemScore(value=v, weight=2) for v in values))


ROWS = [
    ("base", [right(CAPITALS, 10)]),
    ("assistant", [right(CAPITALS, 30), losses(GERMAN, 2.0, 2.4, 2.9)]),
    ("agent", [right(CAPITALS, 28), losses(GERMAN, 3.1, 3.4, 3.99)]),
]
TABLE = matrix(ROWS, [CAPITALS, GERMAN])


def test_the_matrix_is_plain_json():
    loaded = json.loads(canonical_json(TABLE))
    assert loaded["stacks"] == ["base", "assistant", "agent"]
    assert loaded["exams"] == ["capitals/exact", "german/loss"]
    assert len(loaded["cells"]) == 5
    first = loaded["cells"][0]
    assert (first["stack"], first["exam"], first["metric"]) == (
        "base",
        "capitals/exact",
        "accuracy",
    )
    assert (first["value"], first["n"], first["change"]) == (0.25, N, None)
    assert first["ci"][0] < 0.25 < first["ci"][1]


def test_changes_are_marked_against_the_row_above():
    changes = {(cell["stack"], cell["exam"]): cell["change"] for cell in TABLE["cells"]}
    assert changes == {
        ("base", "capitals/exact"): None,
        ("assistant", "capitals/exact"): "better",
        ("assistant", "german/loss"): None,  # nothing above to compare with
        ("agent", "capitals/exact"): None,  # two questions fewer may be chance
        ("agent", "german/loss"): "worse",  # a loss that rises
    }


def test_the_text_shows_value_interval_and_mark():
    assert render_matrix(TABLE).splitlines() == [
        "stack      capitals/exact        german/loss",
        "           n = 40                n = 3",
        "base       25.0% [14.2, 40.2]    -",
        "assistant  75.0% [59.8, 85.8] ▲  1.217 [0.657, 1.777]",
        "agent      70.0% [54.6, 81.9]    1.748 [1.186, 2.311] ▼",
        "",
        LEGEND,
    ]


def test_exams_that_do_not_fit_follow_below():
    lines = render_matrix(TABLE, width=45).splitlines()
    assert max(len(line) for line in lines if line != LEGEND) <= 45
    assert [line.split() for line in lines if line.startswith("stack")] == [
        ["stack", "capitals/exact"],
        ["stack", "german/loss"],
    ]
    assert sum(line.startswith("agent") for line in lines) == 2


def test_exams_of_one_name_are_told_apart_by_their_questions():
    other = exam_of([exam_item("new", "y", accept=("y",))], "exact", "capitals")
    table = matrix([("agent", [right(CAPITALS, 3), right(other, 1)])], [CAPITALS, other, CAPITALS])
    assert len(table["exams"]) == len(set(table["exams"])) == 2
    assert all(label.startswith("capitals/exact@") for label in table["exams"])
    assert [cell["exam"] for cell in table["cells"]] == table["exams"]


def test_an_exam_that_nobody_sat_keeps_its_column():
    secret = exam_of([exam_item("q", "a", accept=("a",))], "exact", "secret", private=True)
    lines = render_matrix(matrix([("base", [])], [secret])).splitlines()
    assert lines[0].split() == ["stack", "secret/exact"]
    assert lines[2].split() == ["base", "-"]


def test_no_exam_at_all_still_lists_the_stacks():
    assert render_matrix(matrix([("base", [])], [])).splitlines()[:3] == ["stack", "", "base"]
