"""kill -9 at random moments over training, pulling, store writes and naming.

After every kill: `lamina verify` is clean, everything that was acknowledged is still there, and
the same command (or `train --resume`) finishes with the same digest as an undisturbed run.
A pico model keeps a round short; the code under test is the same.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import ROOT, emit, home, parser, say

SHARES = {"train": 0.36, "pull": 0.16, "tag": 0.16, "write": 0.32}

WRITER = """
import sys
from lamina.core.digest import digest_bytes
from lamina.core.manifests import LayerConfig, StackedLayer
from lamina.store.layout import Store
from pathlib import Path
store = Store.open(Path(sys.argv[1]))
base = sys.argv[2]
for number in range(int(sys.argv[3]), 10**6):
    config = LayerConfig(name=f"w{number}", base=base, parents=(), rank=1, alpha=1, scaling="lora",
                         modules=("m",), parameters=1, recipe=None, data=None)
    payload = store.put_bytes(str(number).encode() * 4096, "text/plain", title="payload")
    layer = store.put_layer(config, [payload])
    stack = store.put_stack(base, [StackedLayer(layer=layer.digest)])
    name = f"w{number % 7}"
    now = store.names().get(name, {}).get("latest")
    store.move(name, stack, expected=now.digest if now else None)
    print(number, f"w{number % 7}", stack.digest, flush=True)
"""


def command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the CLI to its end."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "lamina"), *arguments],
        env=os.environ | {"LAMINA_HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def need(result: subprocess.CompletedProcess[str]) -> str:
    """stdout of a command that must succeed."""
    if result.returncode:
        raise SystemExit(f"{result.args} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def killed(directory: Path, arguments: list[str], after: float) -> bool:
    """Start the CLI, SIGKILL it after so many seconds; False when it had ended by itself."""
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "lamina"), *arguments],
        env=os.environ | {"LAMINA_HOME": str(directory)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not ended


class Rounds:
    """The kinds of round, over one template store with a base and a named stack."""

    def __init__(self, template: Path, work: Path) -> None:
        self.template, self.work = template, work
        self.pico = work / "pico"
        self.rows = work / "rows.jsonl"
        sys.path.insert(0, str(ROOT))
        from tests.pico import pico_base

        pico_base(self.pico)
        rows = [{"prompt": f"Number {i}?", "completion": f"It is {i * 7}."} for i in range(80)]
        self.rows.write_text("".join(json.dumps(r) + "\n" for r in rows))
        pulled = json.loads(
            need(command(template, "base", "pull", str(self.pico), "--as", "pico", "--json"))
        )
        self.identity = pulled["base"]
        self.train = [
            "train", "--on", "pico", "--data", str(self.rows), "--as", "made",
            "--epochs", "40", "--batch-tokens", "256", "--json",
        ]  # fmt: skip
        self.seconds = {"write": 2.0}
        reference = work / "reference"
        shutil.copytree(template, reference)
        began = time.perf_counter()
        self.layer = json.loads(need(command(reference, *self.train)))["layer"]
        self.seconds["train"] = time.perf_counter() - began
        began = time.perf_counter()
        need(command(reference, "tag", "made:v1", "other"))
        self.seconds["tag"] = time.perf_counter() - began
        began = time.perf_counter()
        need(command(work / "empty", "base", "pull", str(self.pico), "--as", "pico"))
        self.seconds["pull"] = time.perf_counter() - began
        self.reference = reference

    def one(self, kind: str, number: int) -> tuple[bool, bool, int]:
        """(was killed while running, finished afterwards, acknowledged things lost)."""
        directory = self.work / f"round-{number}"
        source = {"pull": None, "train": self.template}.get(kind, self.reference)
        if source is not None:
            shutil.copytree(source, directory)
        after = random.uniform(0.05, 0.98) * self.seconds[kind]
        try:
            return getattr(self, f"_{kind}")(directory, after)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _clean(self, directory: Path) -> bool:
        return command(directory, "verify").returncode == 0

    def _train(self, directory: Path, after: float) -> tuple[bool, bool, int]:
        hit = killed(directory, self.train, after)
        clean = self._clean(directory)
        waiting = json.loads(need(command(directory, "runs", "--json")))["runs"]
        if waiting:
            last = command(directory, "train", "--resume", "last", "--json")
        elif "made" in command(directory, "list").stdout:
            last = command(directory, "show", "made", "--json")
            layer = json.loads(last.stdout)["layers"][-1]["layer"]
            return hit, clean and layer == self.layer, 0
        else:
            last = command(directory, *self.train)
        done = last.returncode == 0 and json.loads(last.stdout)["layer"] == self.layer
        return hit, clean and done and self._clean(directory), 0

    def _pull(self, directory: Path, after: float) -> tuple[bool, bool, int]:
        pull = ["base", "pull", str(self.pico), "--as", "pico", "--json"]
        hit = killed(directory, pull, after)
        clean = not (directory / "oci-layout").exists() or self._clean(directory)
        again = command(directory, *pull)
        done = again.returncode == 0 and json.loads(again.stdout)["base"] == self.identity
        return hit, clean and done and self._clean(directory), 0

    def _tag(self, directory: Path, after: float) -> tuple[bool, bool, int]:
        hit = killed(directory, ["tag", "made:v1", "other"], after)
        clean = self._clean(directory)
        kept = "made" in json.dumps(json.loads(need(command(directory, "list", "--json"))))
        done = command(directory, "tag", "made:v1", "other").returncode == 0
        return hit, clean and done and self._clean(directory), 0 if kept else 1

    def _write(self, directory: Path, after: float) -> tuple[bool, bool, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory), self.identity, "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()  # imports done; from here on it writes
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines()]
        process.wait()
        acknowledged = {}
        for line in lines:
            parts = line.split()
            if len(parts) == 3:
                acknowledged[parts[1]] = parts[2]
        found = json.loads(need(command(directory, "log", "--json")))["moves"]
        stacks = {(move["name"], move["stack"]) for move in found}
        lost = sum((name, stack) not in stacks for name, stack in acknowledged.items())
        return True, self._clean(directory), lost


def main() -> None:
    """Kill and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    random.seed(given.seed)
    with home(given.home) as work:
        rounds = Rounds(work / "template", work)
        plan = [kind for kind, share in SHARES.items() for _ in range(round(share * given.kills))]
        kills = resumed = lost = number = 0
        by_kind = dict.fromkeys(SHARES, 0)
        failures = []
        while plan:
            kind = plan.pop(random.randrange(len(plan)))
            number += 1
            hit, finished, missing = rounds.one(kind, number)
            if not hit:  # it was done before the signal came: another round of the same kind
                plan.append(kind)
                continue
            kills += 1
            by_kind[kind] += 1
            resumed += finished
            lost += missing
            if not finished or missing:
                failures.append(kind)
            say(f"kill {kills}: {kind} {'resumed' if finished else 'FAILED'}, lost {missing}")
    row = {"kills": kills, "resumed": resumed, "lost": lost, "by_kind": by_kind,
           "failures": failures, "seed": given.seed}  # fmt: skip
    emit("crash", row, keep=given.keep)


if __name__ == "__main__":
    main()
