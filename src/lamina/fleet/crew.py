"""One function in several workers at once, joined for torch.distributed by Ray Train.

A worker that dies takes the others' work down with it; they are started again, with whoever is
left if there is no other, and take up what they find on disk. That is for the function to see to.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.core.errors import FleetError, UsageError
from lamina.core.libraries import tell
from lamina.fleet.cluster import POLL_SECONDS, graphics, last_line, processors, ray_itself

SILENT_SECONDS = 600
"""A worker from which nothing has come for so long is given up by the others."""


@dataclass(frozen=True)
class Size:
    """How many workers, and what each gets."""

    workers: int
    least: int = 1
    """Goes on with so many when others are lost."""
    deaths: int = 8
    """Lost workers after which it is given up."""


Work = Callable[[dict[str, Any]], Any]
"""A function of a module, called with plain values in every worker; what the first one gives back
has to be plain as well."""


def together(
    work: Work, given: Mapping[str, Any], size: Size, folder: Path, watch: Callable[[], None]
) -> Any:
    """What worker 0's call of `work` gives, on the cluster that Ray is connected to.

    `folder`: for Ray's own notes, seen by all workers; made here. `watch` is called again and again
    meanwhile, in this thread. Raises FleetError when too many workers died, UsageError where the
    cluster is too small.
    """
    ray = ray_itself()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    threads, gpus = share_of(ray, size.workers, "workers")
    trainer = TorchTrainer(
        _in_worker,
        train_loop_config={"work": work, "given": dict(given), "threads": threads},
        scaling_config=ScalingConfig(
            num_workers=(min(size.least, size.workers), size.workers),
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": threads} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name="crew",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=size.deaths),
        ),
        torch_config=_joined("cpu:gloo,cuda:nccl" if gpus else "gloo"),
    )
    ended: dict[str, Any] = {}

    def fit() -> None:  # in the main thread Ray would take Ctrl-C for itself
        try:
            ended["value"] = trainer.fit().return_value
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        watch()
    if (error := ended.get("error")) is not None:
        first = next(iter((getattr(error, "worker_failures", None) or {}).values()), error)
        raise FleetError(
            f"the workers did not come to an end: {last_line(first)}",
            hint="what they had saved is kept",
        ) from error
    return ended["value"]


def share_of(ray: Any, count: int, what: str) -> tuple[int, int]:
    """The processors and the GPUs (0 or 1) that each of so many processes gets.

    `what`: what they are called, which is the option's name too. Raises UsageError where the
    cluster is too small.
    """
    gpus, machines = graphics(ray), processors(ray)
    threads = threads_of(machines, count)
    if not threads or 0 < gpus < count:
        raise UsageError(
            f"{count} {what} are more than this cluster has "
            + (f"GPUs ({gpus})" if gpus and threads else f"processors ({sum(machines)})"),
            hint=f"give fewer --{what}, or add machines: ray start --address=…",
        )
    return threads, min(gpus, 1)


def threads_of(machines: Sequence[int], workers: int) -> int:
    """The most processors that each of so many workers can have, none of them spread over two
    machines; 0 where there are too few."""
    ways = range(max(machines, default=0), 0, -1)
    return next((n for n in ways if sum(has // n for has in machines) >= workers), 0)


def _joined(backend: str) -> Any:
    """How Ray is to join the workers: over the interface that each machine's node has."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_name_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config(backend=backend, timeout_s=SILENT_SECONDS)


def _name_interface() -> None:
    """Tell gloo, which goes by what the host's name resolves to: often 127.0.0.1."""
    import psutil

    address = ray_itself().util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            tell({"GLOO_SOCKET_IFNAME": name})


def _in_worker(config: dict[str, Any]) -> Any:
    """Ray's own processes get what a process of lamina's has."""
    import torch

    torch.set_num_threads(config["threads"])
    return config["work"](config["given"])
