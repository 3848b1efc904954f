"""Pushing to and pulling from a Hub: what moves, and what is left after faults.

Against the tests' stand-in of the Hub on this machine, which huggingface_hub itself speaks to, by
LFS (no Xet). Under faults every push and pull either does all of it or leaves all as it was: after
each the head of the repository is the old stack or the new one, whole to the byte, and the store
that pulls is clean.
"""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub.constants
from tests.hub.server import serve
from tests.hub.state import Fault, HubState
from tests.stacks import BASE, new_store, put_layer, put_stack, random_factors

from benchmarks.common import emit, parser, say
from lamina.core.digest import digest_bytes
from lamina.core.errors import LaminaError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.hub import pull, push
from lamina.flows.publish import Landing
from lamina.share.hub import BLOBS, INDEX, HubPlace
from lamina.stack.resolve import over_base, resolve
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING

REPO = "org/agent"
PATHS = {
    "push": [("POST", "*/preupload/*"), ("POST", "*/objects/batch"), ("PUT", "*signed=yes"),
             ("POST", "*/lfs/verify"), ("POST", "*/commit/main"), ("GET", "/api/models/*")],
    "pull": [("GET", "*signed=yes"), ("GET", "*/resolve/*"), ("HEAD", "*/resolve/*"),
             ("GET", "*/tree/*"), ("GET", "/api/models/*")],
}  # fmt: skip
HOW: list[dict[str, Any]] = [
    {"drop": "before"}, {"drop": "after"}, {"drop": "half"}, {"drop": "spoil"},
    {"status": 500}, {"status": 429}, {"status": 403}, {"drop": "before", "times": 99},
]  # fmt: skip


def moved(hub: HubState, folder: Path, quick: bool) -> dict[str, Any]:
    """Bytes that are uploaded and downloaded when a 10-layer stack follows a 9-layer one."""
    shape = {"hidden": 64, "layers": 1} if quick else {"hidden": 256, "layers": 4}
    mine = new_store(folder / "mine", **shape)
    theirs = receiver(mine, folder / "theirs")
    layers: list[StackedLayer] = []
    for seed in range(10):
        factors = random_factors(mine, rank=16, seed=seed)
        layer = put_layer(mine, f"layer-{seed}", factors, layers)
        layers.append(StackedLayer(layer=layer.digest))
    identity = over_base(mine, mine.bases()[BASE], label=BASE).config.base
    nine, ten = mine.put_stack(identity, layers[:9]), mine.put_stack(identity, layers)
    mine.tag(Name("ten"), ten, expected=ANYTHING)
    place = HubPlace("org/moved", None, hub.endpoint)
    push(mine, f"@{nine.digest[7:]}", place, Silent())
    pull(theirs, place, Silent(), Landing(name="nine"))
    before = hub.uploaded()
    sent = push(mine, "ten", place, Silent())
    uploaded = hub.uploaded() - before
    received = pull(theirs, place, Silent(), Landing(name="ten"))["received"]
    top = resolve(mine, "ten").layers[-1].manifest
    payload = sum(blob.size for blob in top.layers)
    joined = len(hub.repos["org/moved"].head.files["adapter_model.safetensors"])
    before = hub.uploaded()
    push(mine, "ten", place, Silent())
    return {
        "layer_bytes": payload,
        "joined_adapter_bytes": joined,
        "uploaded_bytes": uploaded,
        "stated_bytes": sent["bytes"],
        "uploaded_again_bytes": hub.uploaded() - before,
        "received_bytes": received,
        "pull_over_layer": received / payload,
        "push_over_layer_and_adapter": uploaded / (payload + joined),
    }


def receiver(store: Store, folder: Path) -> Store:
    """A store that has the base and nothing else."""
    made = Store.open(folder)
    base = store.bases()[BASE]
    manifest = store.manifest(base.digest)
    for blob in (manifest.config, *manifest.layers):
        shutil.copyfile(store.path(blob.digest), made.blobs_dir / blob.digest[7:])
    made.add_root(made.put_manifest(manifest), base.annotations)
    made.tag_base(BASE, base)
    return made


class Trial:
    """Transfers with something going wrong in each."""

    def __init__(self, hub: HubState, folder: Path, seed: int) -> None:
        self.hub, self.folder, self.random = hub, folder, random.Random(seed)
        self.mine = new_store(folder / "mine", layers=1)
        for count in (1, 2, 3):
            put_stack(self.mine, f"s{count}", count)
        self.place = HubPlace(REPO, None, hub.endpoint)
        push(self.mine, "s1", self.place, Silent())
        self.there = "s1"
        self.transfers = self.faults = self.failed = 0
        self.corrupt: list[str] = []

    def run(self, count: int) -> None:
        """Pushes and pulls in turns."""
        theirs = receiver(self.mine, self.folder / "theirs")
        for number in range(count):
            kind = "push" if number % 2 == 0 else "pull"
            fault = self._fault(kind)
            try:
                self._push() if kind == "push" else self._pull(theirs)
            except LaminaError:
                self.failed += 1
            self.transfers += 1
            self.faults += fault.times < self.given
            self.hub.faults = []
            self.hub.settled()
            self._check(theirs, number)
            if number % 10 == 9:
                shutil.rmtree(theirs.root)
                theirs = receiver(self.mine, self.folder / "theirs")

    def _fault(self, kind: str) -> Fault:
        method, path = self.random.choice(PATHS[kind])
        how = self.random.choice(HOW)
        fault = Fault(method, path, after=self.random.choice((0, 0, 1, 3)), **how)
        self.given = fault.times
        self.hub.faults = [fault]
        return fault

    def _push(self) -> None:
        wanted = self.random.choice([s for s in ("s1", "s2", "s3") if s != self.there])
        self.asked = wanted
        push(self.mine, wanted, self.place, Silent())

    def _pull(self, theirs: Store) -> None:
        found = pull(theirs, self.place, Silent(), Landing(name="agent", override="a trial"))
        if found["stack"] != resolve(self.mine, self.there).digest:
            self.corrupt.append(f"pulled {found['stack']}, pushed {self.there}")

    def _check(self, theirs: Store, number: int) -> None:
        files = self.hub.repos[REPO].head.files
        for path, data in files.items():
            if path.startswith(BLOBS) and digest_bytes(data)[7:] != path.removeprefix(BLOBS):
                self.corrupt.append(f"{number}: {path} holds other bytes")
        whole = [name for name in ("s1", "s2", "s3") if self._is_there(name, files)]
        if len(whole) != 1:
            self.corrupt.append(f"{number}: the head is {whole}")
        else:
            self.there = whole[0]
        faults = theirs.verify().faults
        if faults:
            self.corrupt.append(f"{number}: the store that pulls: {faults}")

    def _is_there(self, name: str, files: dict[str, bytes]) -> bool:
        """Whether the head is this stack with all of its blobs."""
        stack = resolve(self.mine, name)
        manifest = self.mine.manifest(stack.digest)
        wanted = {stack.digest, manifest.config.digest, *(b.digest for b in manifest.layers)}
        named = json.loads(files[INDEX])["manifests"][0]["digest"]
        return named == stack.digest and {f"{BLOBS}{digest[7:]}" for digest in wanted} <= set(files)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="small and few; no numbers to keep")
    arguments.add_argument("--transfers", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    os.environ["HF_TOKEN"] = "hf_writer"
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as folder, serve() as hub:
        row = moved(hub, Path(folder) / "moved", given.quick)
        trial = Trial(hub, Path(folder) / "faults", given.seed)
        trial.run(8 if given.quick else given.transfers)
    for text in trial.corrupt[:10]:
        say(f"corrupt: {text}")
    row |= {
        "transfers": trial.transfers,
        "faults": trial.faults,
        "failed": trial.failed,
        "corrupt": len(trial.corrupt),
    }
    emit("hub", row, keep=given.keep)


if __name__ == "__main__":
    main()
