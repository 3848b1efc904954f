"""Pushing to and pulling from a registry: what moves, how fast beside oras, and under faults.

Against Debian's docker-registry on this machine, with a bad network of our own in between for the
faults. Layers are random bytes: what moves cares for no tensor. oras' Python client moves the same
blobs to and from the same registry in turns with lamina; it neither checks digests on arrival nor
syncs to disk, both of which lamina does, so its files are also timed with the sync
(`oras_pull_synced`).
"""

import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.share.proxy import FAULTS, Proxy
from tests.share.registries import PROGRAM, Running, running

from benchmarks.common import emit, home, parser, say
from lamina.core.digest import digest_bytes
from lamina.core.errors import LaminaError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    BaseConfig,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.share.parcel import parcel_of
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository
from lamina.share.wire import Access, Patience
from lamina.store.layout import Store

BASE = BaseConfig(
    tensors=digest_bytes(b"tensors"),
    architecture=digest_bytes(b"architecture"),
    tokenizer=digest_bytes(b"tokenizer"),
    template=digest_bytes(b"template"),
    family="none",
    parameters=1,
    dtype="float32",
    vocab_size=1,
    template_origin="own",
)
SHORT = Patience(attempts=3, first_seconds=0.005, most_seconds=0.05, silent_seconds=30)
"""Short pauses, and few tries, so that some transfers give up and have to be begun again."""
ATTEMPTS = 100
"""Tries of one transfer, each of which ends in an error, before it counts as stuck."""
BATCH = 20
"""Transfers in one series, which shares two stores and a repository."""
SERIES = 4
"""Series at once."""
NAME = "stack"


def put_stack(store: Store, seeds: list[int], size: int) -> str:
    """A named stack of layers of random bytes over each other; its digest."""
    blob = store.put_bytes(b"base" * 100, SAFETENSORS_TYPE, title="model.safetensors")
    store.tag_base("none", store.put_base(BASE, [blob], ""))
    stacked: tuple[StackedLayer, ...] = ()
    for number, seed in enumerate(seeds):
        config = LayerConfig(
            name=f"layer-{seed}",
            base=BASE.identity,
            parents=stacked,
            rank=1,
            alpha=1.0,
            scaling="lora",
            modules=("q_proj",),
            parameters=1,
        )
        blobs = [
            store.put_bytes(b'{"r": 1}', JSON_TYPE, title="adapter_config.json"),
            store.put_bytes(
                random.Random(seed).randbytes(size), SAFETENSORS_TYPE,
                title="adapter_model.safetensors",
            ),
        ]  # fmt: skip
        layer = store.put_layer(config, blobs)
        cost = CostEvidence(
            created=f"2026-01-01T00:00:{number % 60:02d}+00:00", seconds=1.0, steps=1, best_step=1,
            tokens=1, tokens_per_second=1.0, peak_bytes=1, hardware="none", versions={},
            layer_bytes=size, base_bytes=1,
        )  # fmt: skip
        if not store.referrers(layer.digest, COST_TYPE):
            store.put_evidence(COST_TYPE, cost, layer)
        stacked = (*stacked, StackedLayer(layer=layer.digest))
    stack = store.put_stack(BASE.identity, stacked)
    now = store.names().get(NAME, {}).get("latest")
    store.move(NAME, stack, expected=now.digest if now else None)
    return stack.digest


def receiver(folder: Path) -> Store:
    """A store that has the base and nothing else."""
    store = Store.open(folder)
    blob = store.put_bytes(b"base" * 100, SAFETENSORS_TYPE, title="model.safetensors")
    store.tag_base("none", store.put_base(BASE, [blob], ""))
    return store


# -- what moves ------------------------------------------------------------------------------------


def moved(registry: Running, folder: Path, size: int) -> dict[str, Any]:
    """Bytes that go over the wire when a 10-layer stack follows a 9-layer one."""
    access, place = Access(), registry.place("bench/moved")
    mine, theirs = Store.open(folder / "mine"), receiver(folder / "theirs")
    put_stack(mine, list(range(9)), size)
    push(mine, NAME, place, access, Silent())
    pull(theirs, place, access, Silent(), Landing(name="nine"))
    stack = put_stack(mine, list(range(10)), size)
    top = mine.config(mine.manifest(stack), StackConfig).layers[-1].layer
    payload = sum(blob.size for blob in mine.manifest(top).layers)
    sent = push(mine, NAME, place, access, Silent())["sent"]
    received = pull(theirs, place, access, Silent(), Landing(name="ten"))["received"]
    again = push(mine, NAME, place, access, Silent())["sent"]
    return {
        "moved_over_layer": max(sent, received) / payload,
        "moved_over_layer_push": sent / payload,
        "moved_over_layer_pull": received / payload,
        "layer_bytes": payload,
        "sent_bytes": sent,
        "received_bytes": received,
        "sent_again_bytes": again,
    }


# -- how fast --------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def synced(files: list[str]) -> None:
    """Bring files to the disk, as lamina does before it says that they are there."""
    for file in files:
        with Path(file).open("rb") as handle:
            os.fsync(handle.fileno())


def speed(registry: Running, folder: Path, size: int, layers: int, rounds: int) -> dict[str, Any]:
    """Seconds of pushes and pulls, lamina and oras in turns, each into nothing."""
    import oras.client

    put_stack(Store.open(folder / "mine"), list(range(100, 100 + layers)), size)
    files = []
    for number in range(layers):
        file = folder / f"blob-{number}.safetensors"
        file.write_bytes(random.Random(100 + number).randbytes(size))
        files.append(str(file))
    total = layers * size
    names = ("push", "pull", "oras_push", "oras_pull", "oras_pull_synced")
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        place = registry.place(f"bench/ours-{number}")
        target = f"{registry.host}/bench/oras-{number}:latest"
        # a store as it is opened by a command: nothing hashed yet, nothing known of registries
        shutil.rmtree(folder / "mine" / "cache", ignore_errors=True)
        out, away = folder / f"out-{number}", receiver(folder / f"away-{number}")
        client = oras.client.OrasClient(hostname=registry.host, insecure=True)
        work: list[tuple[str, Callable[[], Any]]] = [
            ("push", lambda p=place: push(
                Store.open(folder / "mine"), NAME, p, Access(), Silent())),
            ("oras_push", lambda c=client, t=target: c.push(
                target=t, files=files, disable_path_validation=True, quiet=True)),
            ("pull", lambda p=place, a=away: pull(a, p, Access(), Silent(), Landing(name=NAME))),
            ("oras_pull", lambda c=client, t=target, o=out: c.pull(target=t, outdir=str(o))),
            ("oras_pull_synced", lambda c=client, t=target, o=out: synced(
                c.pull(target=t, outdir=str(o / "synced")))),
        ]  # fmt: skip
        if number % 2:  # who goes first takes turns
            work = [work[1], work[0], *work[:1:-1]]
        for name, job in work:
            os.sync()  # what the one wrote is not the other's to wait for
            times[name].append(timed(job))
        say(" ".join(f"{name} {seconds[-1]:.2f}s" for name, seconds in times.items()))
        shutil.rmtree(out)
        shutil.rmtree(away.root)
    rate = {name: total / 1e6 / statistics.median(found) for name, found in times.items()}
    return {
        "mb": total / 1e6,
        "blobs": layers,
        "rounds": rounds,
        "push_mb_s": rate["push"],
        "pull_mb_s": rate["pull"],
        "oras_push_mb_s": rate["oras_push"],
        "oras_pull_mb_s": rate["oras_pull"],
        "oras_pull_synced_mb_s": rate["oras_pull_synced"],
        "push_vs_oras": rate["push"] / rate["oras_push"],
        "pull_vs_oras": rate["pull"] / rate["oras_pull"],
        "pull_vs_oras_synced": rate["pull"] / rate["oras_pull_synced"],
    }


# -- under faults ----------------------------------------------------------------------------------


class Trial:
    """Transfers through a bad network, each checked; several series of them at once."""

    def __init__(self, registry: Running, folder: Path, seed: int) -> None:
        self._registry, self._folder, self._seed = registry, folder, seed
        self._lock = threading.Lock()
        self.faults = self.retried = self.gave_up = self.transfers = 0
        self.corrupt: list[str] = []
        self.kinds: dict[str, int] = {}

    def run(self, transfers: int) -> None:
        """Pushes and pulls in turns, over stacks that share layers with earlier ones."""
        sizes = [min(BATCH, transfers - begun) for begun in range(0, transfers, BATCH)]
        with ThreadPoolExecutor(SERIES) as pool:
            list(pool.map(self._series, range(len(sizes)), sizes))

    def _series(self, index: int, transfers: int) -> None:
        draw = random.Random(self._seed * 10_000 + index)
        folder = self._folder / f"series-{index}"
        mine, theirs = Store.open(folder / "mine"), receiver(folder / "theirs")
        seeds = [draw.randrange(1 << 30)]
        for number in range(transfers):
            if number % 2 == 0:
                seeds = [*seeds[-3:], draw.randrange(1 << 30)]
                stack = put_stack(mine, seeds, draw.choice([3_000, 40_000, 300_000, 900_000]))
                place = self._registry.place(f"faults/series-{index}", f"v{number}")
            self._one("pull" if number % 2 else "push", mine, theirs, place, stack, draw)
        shutil.rmtree(folder)
        say(
            f"{self.transfers} transfers, {self.faults} faults, {self.retried} retried, "
            f"{self.gave_up} begun again, {len(self.corrupt)} corrupt"
        )

    def _one(
        self, verb: str, mine: Store, theirs: Store, place: str, stack: str, draw: random.Random
    ) -> None:
        seed, rate = draw.randrange(1 << 30), draw.choice([0.05, 0.15, 0.3])
        access, far = Access(patience=SHORT), draw.choice([200, 5_000, 500_000])
        retried = attempt = 0
        with Proxy(self._registry.port, seed=seed, rate=rate, faults=FAULTS, far=far) as proxy:
            bad = place.replace(f":{self._registry.port}/", f":{proxy.port}/")
            for attempt in range(ATTEMPTS):
                try:
                    if verb == "push":
                        retried = push(mine, NAME, bad, access, Silent())["retried"]
                    else:
                        landing = Landing(name="got-" + place.rpartition(":")[2])
                        pulled = pull(theirs, bad, access, Silent(), landing)
                        retried = pulled["retried"]
                        self._is(pulled["stack"] == stack, f"{place}: {pulled['stack']} came")
                    break
                except LaminaError as error:
                    self._is(attempt < ATTEMPTS - 1, f"{verb} {place} is stuck: {error.message}")
                    self._stores_are_whole(mine, theirs, place, stack)
        self._stores_are_whole(mine, theirs, place, stack)
        self._arrives_whole(mine, place, stack)
        with self._lock:
            self.transfers += 1
            self.faults += proxy.counts.total()
            self.retried += bool(retried or attempt)
            self.gave_up += bool(attempt)
            for kind, count in proxy.counts.items():
                self.kinds[kind] = self.kinds.get(kind, 0) + count

    def _is(self, right: bool, fault: str) -> None:
        if not right:
            with self._lock:
                self.corrupt.append(fault)

    def _stores_are_whole(self, mine: Store, theirs: Store, place: str, stack: str) -> None:
        """Both stores, and what the registry lists, also after a try that gave up."""
        for store in (mine, theirs):
            report = Store.open(store.root).verify()
            self._is(report.clean, f"{store.root.name}: {report.faults}")
        with Repository(parse_place(place), Access()) as repository:
            there = repository.head_manifest(parse_place(place).target)
        if there is not None:
            self._arrives_whole(mine, place, stack)

    def _arrives_whole(self, mine: Store, place: str, stack: str) -> None:
        """A fresh store takes all that the registry lists, over a good network."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            fresh = receiver(Path(folder) / "fresh")
            try:
                pulled = pull(fresh, place, Access(), Silent(), Landing(name=NAME))
            except LaminaError as error:
                self._is(False, f"{place}: {error.message}")
                return
            report, left_out = fresh.verify(), pulled["preview"]["left_out"]
            self._is(report.clean, f"{place}: {report.faults}")
            self._is(pulled["stack"] == stack, f"{place} is {pulled['stack']}, not {stack}")
            self._is(not left_out, f"{place}: {left_out}")
            sent = {item.digest for item in parcel_of(mine, stack).evidence}
            there = parcel_of(fresh, pulled["stack"]).evidence
            missing = sent - {item.digest for item in there}
            self._is(not missing, f"{place}: evidence {sorted(missing)} is missing")


def registry_version() -> str:
    done = subprocess.run([PROGRAM or "", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.stdout else ""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="small and few; no numbers to keep")
    arguments.add_argument("--transfers", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    if PROGRAM is None:
        raise SystemExit("docker-registry is not installed (apt-get install docker-registry)")
    quick = given.quick
    with home(None) as folder, running(folder / "registry") as registry:
        row = moved(registry, folder / "moved", 200_000 if quick else 20_000_000)
        (folder / "speed").mkdir()
        row |= speed(
            registry,
            folder / "speed",
            300_000 if quick else 20_000_000,
            3 if quick else 10,
            2 if quick else given.rounds,
        )
    # what is right there is right on a disk too, and there is no waiting for one
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="lamina-bench-", dir=memory) as scratch,
        running(Path(scratch) / "registry") as registry,
    ):
        trial = Trial(registry, Path(scratch) / "faults", given.seed)
        trial.run(12 if quick else given.transfers)
    for text in trial.corrupt[:10]:
        say(f"corrupt: {text}")
    row |= {
        "transfers": trial.transfers,
        "faults": trial.faults,
        "fault_kinds": dict(sorted(trial.kinds.items())),
        "corrupt": len(trial.corrupt),
        "retried": trial.retried,
        "begun_again": trial.gave_up,
        "registry": f"docker-registry {registry_version()}",
    }
    emit("share", row, keep=given.keep)


if __name__ == "__main__":
    main()
