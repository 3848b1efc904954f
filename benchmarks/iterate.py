"""From an edited data file to an examined, named layer: what a person waits for.

Each command is a process of its own, timed from its start to its end, on 500 rows of dolly with
lamina's defaults: `first_s` trains on them; `again_s` is the same command with nothing changed;
`edited_s` the same command after a handful of rows was edited and a handful added; `updated_s` is
`lamina update` after another such edit, which learns those rows alone (`updated_passed`: whether
the gate would have let it without a reason). `phases_s` says where the time of the first went:
`start` (process, imports, reading), `load` (base and tokenizer), `encode`, `steps`, `held_out`
(losses during training), `checkpoints`, `exam` (landing, both exams, gate, name) and `rest`.
`first_cpu_s` is its processor time: on a machine that others use it says more than the clock.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.core.manifests import LayerConfig
from lamina.flows import runs
from lamina.flows.bases import ensure
from lamina.store.layout import Store

DATA = "train_dolly_small.jsonl"
ROWS, QUICK_ROWS = 500, 40
HANDFUL = 5


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows")
    given = arguments.parse_args()
    rows = (given.data / DATA).read_text(encoding="utf-8").splitlines()
    count = QUICK_ROWS if given.quick else ROWS
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        file = directory / "bench-data" / "rows.jsonl"
        file.parent.mkdir(exist_ok=True)
        train = ["train", "--on", BASE, "--data", str(file), "--as", "iterated"]

        current = rows[:count]
        write(file, current)
        first_s, first, phases = timed(store, train)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # the kernels' compiler too, once
        again_s, again, _ = timed(store, train)
        if again["layer"] != first["layer"]:
            raise SystemExit(f"nothing changed, but {again['layer']} is not {first['layer']}")

        current = edited(current, rows[count : count + HANDFUL], first=0)
        write(file, current)
        edited_s, second, _ = timed(store, train)
        current = edited(current, rows[count + HANDFUL : count + 2 * HANDFUL], first=HANDFUL)
        write(file, current)
        update = ["update", "iterated", "--data", str(file), "--accept-regression", "a benchmark"]
        updated_s, third, _ = timed(store, update)
        if len({first["layer"], second["layer"], third["layer"]}) != 3:
            raise SystemExit("an edit made no layer of its own")
        data = store.config(store.manifest(first["layer"]), LayerConfig).data
    emit(
        "iterate",
        {
            "first_s": first_s,
            "again_s": again_s,
            "edited_s": edited_s,
            "updated_s": updated_s,
            "updated_passed": third["metrics"]["gate"]["passed"],
            "first_cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "rows": count,
            "tokens": data.tokens if data else 0,
            "supervised_tokens": data.supervised_tokens if data else 0,
            "steps": first["cost"]["steps"],
            "tokens_per_second": round(first["cost"]["tokens"] / phases["steps"], 1),
            "phases_s": phases,
            "share": {name: round(seconds / first_s, 3) for name, seconds in phases.items()},
            "loss_before": first["cost"]["loss_before"],
            "loss_after": first["cost"]["loss_after"],
            "kernels": first["cost"]["versions"]["kernels"],
            "threads": first["cost"]["hardware"].rpartition(", ")[2],
            "quick": given.quick,
        },
        keep=given.keep,
    )


def write(file: Path, rows: list[str]) -> None:
    """Put rows into the data file, in place."""
    file.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def edited(rows: list[str], added: list[str], *, first: int) -> list[str]:
    """The rows with the answers of a handful, from `first` on, reworded, and others added."""
    changed = []
    for row in rows[first : first + HANDFUL]:
        value = json.loads(row)
        value["messages"][-1]["content"] += " That is all there is to say."
        changed.append(json.dumps(value))
    return [*rows[:first], *changed, *rows[first + HANDFUL :], *added]


def timed(store: Store, command: list[str]) -> tuple[float, dict[str, Any], dict[str, float]]:
    """Wall seconds of a command as a process, what it printed, and its phases if it trained."""
    lamina = str(Path(sys.executable).parent / "lamina")
    environment = {**os.environ, "LAMINA_HOME": str(store.root)}
    before = {run.id for run in runs.all_runs(store)}
    began, clock = time.time(), time.perf_counter()
    done = subprocess.run(
        [lamina, *command, "--json"], env=environment, stdout=subprocess.PIPE, check=True
    )
    seconds = round(time.perf_counter() - clock, 2)
    say(f"{seconds} s: lamina {' '.join(command)}")
    fresh = [run for run in runs.all_runs(store) if run.id not in before]
    return (
        seconds,
        json.loads(done.stdout),
        phases_of(fresh[0], began, seconds) if fresh else {},
    )


def phases_of(run: runs.Run, began: float, seconds: float) -> dict[str, float]:
    """Seconds by phase of a command that began at `began` (wall clock), from its run's events."""
    found = dict.fromkeys(("start", "load", "encode", "steps", "held_out", "checkpoints"), 0.0)
    names = {"step": "steps", "eval": "held_out", "checkpoint": "checkpoints"}
    last = began
    for event in run.events():
        since, last = event["time"] - last, event["time"]
        if event["event"] == "ready":
            found["load"], found["encode"] = event["load_seconds"], event["encode_seconds"]
            found["start"] = since - found["load"] - found["encode"]
        elif event["event"] in names:
            found[names[event["event"]]] += since
    found["exam"] = began + seconds - last
    found["rest"] = seconds - sum(found.values())
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    main()
