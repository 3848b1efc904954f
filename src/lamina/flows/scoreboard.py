"""Results on record, with intervals: a name's versions beside the exams that they carry.

Nothing is examined here; what was not sat is absent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lamina.core.digest import Digest
from lamina.core.evidence import NAMING_TYPE, SCORES_TYPE
from lamina.core.manifests import ExamSpec, LayerConfig
from lamina.core.names import parse_name
from lamina.core.scores import ItemScore
from lamina.exams.report import Cell, matrix
from lamina.exams.runner import ExamResult
from lamina.exams.tasks import Exam
from lamina.flows.evidence import recorded
from lamina.flows.lineage import Lineage, Version, version_of
from lamina.store.layout import Store

Records = Sequence[Mapping[str, Any]]
"""Scores on record about one stack, oldest first."""


def scoreboard(store: Store, text: str, *, newest: int = 40) -> dict[str, Any]:
    """The newest versions of a name, oldest first, and their results on every exam of any of them.

    A layer's new version may carry other questions under the same name: then exams differ by
    `label`, and `own` names those that a version itself carries. A result is marked better or
    worse than that of the version before it by the paired test that the gate uses. Raises
    UnknownNameError, UsageError for a base.
    """
    lineage = Lineage.of(store)
    name = parse_name(text).name
    version_of(store, lineage, name)
    versions = [v for v in lineage.versions if v.name.name == name][-newest:]
    stacks = {version.stack for version in versions}
    scored = recorded(store, SCORES_TYPE, stacks)
    moves = recorded(store, NAMING_TYPE, stacks)
    known = {d: carried_exams(store, d) for v in versions for d in v.digests}
    columns = list({exam.key: exam for exams in known.values() for exam in exams}.values())
    rows = [(str(v.name), results(columns, scored.get(v.stack, ()))) for v in versions]
    found = matrix(rows, columns)
    labels = {exam.key: label for exam, label in zip(columns, found["exams"], strict=True)}
    own = {v: [labels[exam.key] for d in v.digests for exam in known[d]] for v in versions}
    return {
        "name": name,
        "versions": [_version(v, moves.get(v.stack, ())) | {"own": own[v]} for v in versions],
        "exams": [
            {"label": labels[exam.key], "exam": exam.name, "layer": exam.layer} for exam in columns
        ],
        "cells": found["cells"],
    }


def _version(version: Version, moves: Records) -> dict[str, Any]:
    wanted = (version.name.name, version.name.version)
    mine = [m for m in moves if (m.get("name"), m.get("version")) == wanted]
    move = mine[-1] if mine else {}
    return {
        "version": str(version.name),
        "stack": version.stack,
        "created": move.get("created"),
        "passed": (move.get("verdict") or {}).get("passed"),
        "override": move.get("override"),
    }


def carried_exams(store: Store, layer: Digest) -> list[Exam]:
    """The exams that a layer carries, without their questions."""
    config = store.config(store.manifest(layer), LayerConfig)
    return [Exam(spec, config.name, None) for spec in config.exams]


def results(exams: Iterable[Exam], records: Records) -> list[ExamResult]:
    """What is on record about a stack for these exams, the newest record of each."""
    newest: dict[tuple[str, str, int], tuple[ItemScore, ...]] = {}
    for record in records:
        items = tuple(ItemScore(value=v, weight=w) for v, w, _ in record["items"])
        if any(i.weight for i in items) and all(math.isfinite(i.value) for i in items):
            newest[_key(record)] = items
    once = {exam.key: exam for exam in exams}
    return [ExamResult(exam, newest[key]) for key, exam in once.items() if key in newest]


def _key(record: Mapping[str, Any]) -> tuple[str, str, int]:
    """As `Exam.key`."""
    spec = ExamSpec(
        name="-",
        scorer=record["scorer"],
        items=record["exam_digest"],
        rows=0,
        max_new_tokens=record["max_new_tokens"],
    )
    return Exam(spec, "-", None).key


def cells(exams: Sequence[Exam], records: Records) -> list[Cell]:
    """One stack's results."""
    return matrix([("", results(exams, records))], exams)["cells"]
