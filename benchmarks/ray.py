"""Two hosts of a Ray cluster: one layer trained by both, many layers farmed, and what kills cost.

The hosts are network namespaces on this machine, with a processor each, and see nobody else; the
processes are real. Needs root.

- `together`: the same recipe in one process and in two workers. `dp_max_rel`: the largest
  difference of an update of a linear, relative to it (Frobenius), in float32 and in bfloat16.
  `bytes_per_step`: what each worker puts into sums, over what the factors weigh as float32.
- `farm`: `--jobs` small layers by `lamina farm` on two processors, and by `lamina train` one after
  another on one; the same work.
- `kills`: `kill -9` of a worker, of a job's and of a trial's process, and of the farm's and the
  sweep's own. `lost`: jobs without a name and runs without a layer at the end, trials that neither
  landed nor were ended early, blobs that do not verify.
- `served`: `kill -9` of a replica of `lamina serve --replicas 2` while answers are in flight.
  `lost`: answers that do not come, or not as they came before.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from tests.fleet.hosts import BIN, Hosts, ended, until, why_not

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.flows import runs
from lamina.flows.bases import ensure
from lamina.stack.compile import stored_factors
from lamina.store.layout import Store

ROWS = "A river carries {n} stones past the window. How many does it carry? It carries {n}."
PORT = 8123
JSON = "application/json"
COMMON = {"held_out": 0.2, "held_out_max": 8, "exams": ["loss"], "warmup": 0.0}


def write_rows(path: Path, count: int, seed: int) -> None:
    """Short rows, each with a number of its own."""
    rows = [
        {"prompt": ROWS.format(n=seed * 1000 + n), "completion": f"{n * 7} of them {seed}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def alone(store: Store, *words: object) -> tuple[str, float]:
    """A layer that `lamina train` made in one process of one thread; and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(BIN / "lamina"), "train", *map(str, words), "--json"],
        env={**os.environ, "LAMINA_HOME": str(store.root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)["layer"], time.perf_counter() - began


def said_by(process: Any) -> Any:
    """What a command printed as JSON; SystemExit where it failed."""
    status, out, said = ended(process, 900)
    if status:
        raise SystemExit(said[-2000:])
    return json.loads(out)


def run_of(store: Store, name: str) -> runs.Run | None:
    """The newest run of that name."""
    return next((run for run in runs.all_runs(store)[::-1] if run.spec.name == name), None)


def steps(store: Store, name: str) -> list[dict[str, Any]]:
    """Its steps so far."""
    run = run_of(store, name)
    return [] if run is None else [e for e in run.events() if e["event"] == "step"]


def together(hosts: Hosts, store: Store, folder: Path, dtype: str, count: int) -> dict[str, Any]:
    """One layer by one process, and by two workers on two hosts."""
    rows, recipe = folder / "together.jsonl", folder / f"{dtype}.json"
    write_rows(rows, 160, 1)
    recipe.write_text(
        json.dumps(COMMON | {"dtype": dtype, "steps": count, "batch_tokens": 1024, "rank": 8})
    )
    words = ("--on", BASE, "--data", rows, "--recipe", recipe, "--accept-regression", "a benchmark")
    one, _ = alone(store, *words, "--as", f"alone-{dtype}")
    made = said_by(
        hosts.lamina(store.root, "train", *words, "--as", f"crew-{dtype}", "--workers", 2, "--json")
    )
    ours, theirs = stored_factors(store, made["layer"]), stored_factors(store, one)
    differences = []
    for name, factors in ours.items():
        delta, wanted = factors.b_OR @ factors.a_RI, theirs[name].b_OR @ theirs[name].a_RI
        differences.append(float(torch.linalg.norm(delta - wanted) / torch.linalg.norm(wanted)))
    run = run_of(store, f"crew-{dtype}")
    assert run is not None
    (crew,) = [event for event in run.events() if event["event"] == "crew"]
    weight = 4 * sum(f.a_RI.numel() + f.b_OR.numel() for f in ours.values())

    def speed(name: str) -> float:
        found = steps(store, name)[1:]
        seconds = sum(each["tokens"] / each["tokens_per_second"] for each in found)
        return round(sum(each["tokens"] for each in found) / seconds, 1)

    found = {
        "dp_max_rel": max(differences),
        "bytes_per_step": crew["bytes_per_step"],
        "factors_bytes": weight,
        "tokens_per_second": {"one": speed(f"alone-{dtype}"), "two": speed(f"crew-{dtype}")},
    }
    say(f"{dtype}: {json.dumps(found)}")
    return found


def jobs_file(folder: Path, names: list[str], recipe: dict[str, Any]) -> Path:
    """Jobs with rows of their own."""
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in (COMMON | recipe).items())
    text = [f'[defaults]\non = "{BASE}"\naccept_regression = "a benchmark"\nrecipe = {{ {keys} }}']
    for number, name in enumerate(names):
        write_rows(folder / f"{name}.jsonl", 24, number)
        text.append(f'[[job]]\nname = "{name}"\ndata = ["{name}.jsonl"]')
    path = folder / f"{names[0]}.toml"
    path.write_text("\n".join(text) + "\n")
    return path


def farmed(hosts: Hosts, store: Store, folder: Path, count: int) -> dict[str, Any]:
    """The same layers by a farm, and one after another."""
    names = [f"farmed-{n}" for n in range(count)]
    recipe = {"rank": 4, "steps": 4, "batch_tokens": 256, "max_length": 128}
    path = jobs_file(folder, names, recipe)
    began = time.perf_counter()
    made = said_by(hosts.lamina(store.root, "farm", path, "--json"))["jobs"]
    took = time.perf_counter() - began
    say(f"{count} layers farmed: {took:.1f} s")
    given = folder / "farmed.json"
    given.write_text(json.dumps(COMMON | recipe))
    serial, equal = 0.0, 0
    for job in made:
        layer, seconds = alone(
            store, "--on", BASE, "--data", folder / f"{job['name']}.jsonl", "--as", job["name"],
            "--recipe", given, "--accept-regression", "a benchmark", "--again",
        )  # fmt: skip
        serial, equal = serial + seconds, equal + (layer == job["layer"])
    say(f"one after another: {serial:.1f} s, {equal} of {count} with the same digest")
    return {
        "layers": count,
        "named": sum(job["state"] == "named" for job in made),
        "farm_s": round(took, 2),
        "serial_s": round(serial, 2),
        "speedup": round(serial / took, 3),
        "equal": equal,
    }


def kills(hosts: Hosts, store: Store, folder: Path, rounds: int) -> dict[str, Any]:
    """Kill workers, jobs and the farm itself; count what is lost."""
    killed = lost = twice = 0
    recipe = {"rank": 4, "steps": 40, "batch_tokens": 128, "max_length": 64}
    for number in range(rounds):
        name = f"killed-{number}"
        path = jobs_file(folder, [name, f"{name}-b"], recipe)
        process = hosts.lamina(store.root, "farm", path, "--json")
        until(lambda name=name: len(steps(store, name)) > 3, 300)
        victims = hosts.pids(number % 2, "ray::_in_task")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        killed += len(victims)
        until(lambda name=name: len(steps(store, name)) > 8, 300)
        process.kill()
        process.wait()
        killed += 1
        made = said_by(hosts.lamina(store.root, "farm", path, "--json"))["jobs"]
        lost += sum(job["state"] != "named" for job in made)

        name, rows, given = f"worker-{number}", folder / "worker.jsonl", folder / "worker.json"
        write_rows(rows, 40, number)
        given.write_text(json.dumps(COMMON | recipe))
        process = hosts.lamina(
            store.root, "train", "--on", BASE, "--data", rows, "--as", name, "--recipe", given,
            "--accept-regression", "a benchmark", "--workers", 2, "--json",
        )  # fmt: skip
        until(lambda name=name: len(steps(store, name)) > 5, 300)
        victims = hosts.pids(number % 2, "ray::RayTrainWorker")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        killed += len(victims)
        said = said_by(process)
        lost += said["name"] is None
        done = [event["step"] for event in steps(store, name)]
        twice += len(done) - len(set(done))
        more = killed_sweep(hosts, store, folder, number, COMMON | recipe)
        killed, lost = killed + more[0], lost + more[1]
        say(f"round {number + 1}: {killed} killed, {lost} lost")
    lost += not store.verify().clean
    return {"killed": killed, "lost": lost, "steps_taken_twice": twice}


def killed_sweep(
    hosts: Hosts, store: Store, folder: Path, number: int, recipe: dict[str, Any]
) -> tuple[int, int]:
    """Kill a trial's process, then the sweep's own; (killed, trials and names lost)."""
    name = f"swept-{number}"
    write_rows(folder / f"{name}.jsonl", 24, number)
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in recipe.items())
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\non = "{BASE}"\ndata = ["{name}.jsonl"]\n'
        f'accept_regression = "a benchmark"\nrecipe = {{ {keys} }}\n'
        "[search]\nlr = [5e-4, 6e-4, 7e-4]\n"
    )
    process = hosts.lamina(store.root, "sweep", path, "--json")
    until(lambda: len(steps(store, name)) > 3, 300)
    victims = hosts.pids(number % 2, "ray::ImplicitFunc")
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(steps(store, name)) > 8, 300)
    process.kill()
    process.wait()
    made = said_by(hosts.lamina(store.root, "sweep", path, "--json"))
    lost = sum(each["state"] not in ("landed", "ended early") for each in made["trials"])
    return len(victims) + 1, lost + (made["name"] is None) + 3 - len(made["trials"])


def asked(prompt: str) -> str:
    """A completion's text, of a server at this thread's host."""
    body = {"model": BASE, "prompt": prompt, "max_tokens": 64, "temperature": 1, "seed": 1}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": JSON})
        return str(json.loads(connection.getresponse().read())["choices"][0]["text"])


def served(hosts: Hosts, store: Store, rounds: int, at_once: int = 20) -> dict[str, Any]:
    """Kill replicas that answer; count the answers that are lost."""
    prompts = [ROWS.format(n=n) for n in range(at_once)]
    process = hosts.lamina(store.root, "serve", "--port", PORT, "--replicas", 2)
    while not process.stdout.readline().startswith("ready"):
        if process.poll() is not None:
            raise SystemExit(process.stderr.read()[-2000:])
    killed = lost = 0
    with hosts.threads(0, at_once) as there:
        expected = list(there.map(asked, prompts))
        for number in range(rounds):
            until(lambda: all(hosts.pids(host, "ray::ServeReplica") for host in (0, 1)), 300)
            answers = [there.submit(asked, prompt) for prompt in prompts]
            time.sleep(0.5)
            victims = hosts.pids(number % 2, "ray::ServeReplica")
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            killed += len(victims)
            for answer, wanted in zip(answers, expected, strict=True):
                try:
                    lost += answer.result() != wanted
                except (OSError, KeyError, ValueError, http.client.HTTPException):
                    lost += 1
            say(f"served, round {number + 1}: {killed} killed, {lost} lost")
    process.send_signal(signal.SIGTERM)
    status, _, said = ended(process, 120)
    if status:
        raise SystemExit(said[-2000:])
    return {"answers": rounds * at_once, "killed": killed, "lost": lost}


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="few steps, jobs and kills")
    arguments.add_argument("--jobs", type=int, default=24)
    arguments.add_argument("--rounds", type=int, default=4, help="of kills, three or four each")
    given = arguments.parse_args()
    if why := why_not():
        raise SystemExit(why)
    if given.quick:
        given.jobs, given.rounds = 3, 1
    with home(given.home) as directory:
        store, folder = Store.open(directory), directory / "bench-ray"
        folder.mkdir(exist_ok=True)
        ensure(store, BASE, Log())
        with Hosts() as hosts:
            found = {
                dtype: together(hosts, store, folder, dtype, 3 if given.quick else 8)
                for dtype in ("float32", "bfloat16")
            }
            row = {
                "dp_max_rel": found["float32"]["dp_max_rel"],
                "bytes_per_step": found["float32"]["bytes_per_step"],
                "together": found,
                "farm": farmed(hosts, store, folder, given.jobs),
                **kills(hosts, store, folder, given.rounds),
                "served": served(hosts, store, given.rounds),
                "quick": given.quick,
            }
            for count in ("killed", "lost"):
                row[count] += row["served"][count]
        emit("ray", row, keep=given.keep)


if __name__ == "__main__":
    main()
