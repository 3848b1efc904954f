"""A function tried with many values, those that do badly ended early, through Ray Tune.

Who goes on is decided by asynchronous successive halving (ASHA, arXiv:1810.05934): at each of
`RUNGS` per cent of its work a trial has to be among the best third of those that came so far.
A trial whose process dies is begun again, a few times, and takes up what it finds on disk.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamina.core.errors import FleetError
from lamina.fleet.cluster import POLL_SECONDS, graphics, last_line, ray_itself
from lamina.fleet.pool import TRIES, room_for

RUNGS = (10, 30)
"""Per cent of a trial's work after which it may be ended."""
KEEP = 3
"""One in so many goes on."""
FEW = 2 * KEEP
"""Where fewer are tried, all go to their end: there would be nobody to be judged beside."""
WORST = 1e9
"""What a measure counts as that is no number."""

State = Literal["running", "over", "ended early", "failed"]


@dataclass(frozen=True)
class Seen:
    """What has become of a trial by now."""

    number: int
    """Its place in the values given."""
    state: State
    percent: int = 0
    """Of its work, when it was heard of last."""
    measure: float | None = None
    """What it was judged by there; less is better."""
    value: Any = None
    """What the function gave back, once it is over."""
    fault: str | None = None
    """Why it failed."""


Tell = Callable[[int, float], None]
"""Per cent of the work that is done, and what it is judged by there. May end the process."""
Work = Callable[[dict[str, Any], Any, Tell], Any]
"""A function of a module, called with plain values common to all, those of the trial, and whom to
tell; what it gives back has to be plain values."""


def search(
    work: Work,
    given: Mapping[str, Any],
    trials: Sequence[Any],
    folder: Path,
    watch: Callable[[], bool],
    *,
    processors: int = 1,
) -> Iterator[Seen]:
    """What is heard of each trial, as it is heard, until all have come to an end.

    On the cluster that Ray is connected to. `folder`: for Ray's own notes, made here. `watch` is
    called again and again meanwhile, in this thread, and says whether to stop: those that run then
    come to their own end, and no others begin. Raises UsageError where no machine has so many
    `processors`, FleetError where the search itself breaks off.
    """
    ray = ray_itself()
    from ray import tune

    room_for(ray, processors)
    heard: queue.Queue[Seen] = queue.Queue()
    halt = _halt()
    trainable = tune.with_resources(
        tune.with_parameters(_in_trial, work=work, given=dict(given), threads=processors),
        {"cpu": processors, "gpu": min(graphics(ray), 1)},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([list(each) for each in enumerate(trials)])},
        tune_config=tune.TuneConfig(
            scheduler=_halving() if len(trials) >= FEW else None,
            reuse_actors=True,  # a process takes longer to begin than a small trial
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            callbacks=[_listener(heard, halt)],
            stop=halt,
            verbose=0,
        ),
    )
    thread, ended = _begun(tuner.fit)
    while thread.is_alive() or not heard.empty():
        if watch():
            halt.ask()
        try:
            yield heard.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
    if ended:
        raise FleetError(
            f"the search broke off: {last_line(ended[0])}", hint="what trials had saved is kept"
        ) from ended[0]


def _begun(fit: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    """A search on its way, and what it breaks off with. In the main thread Ray would take Ctrl-C
    for itself."""
    ended: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def _halving() -> Any:
    """Ends early what lags behind."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="percent",
        metric="measure",
        mode="min",
        grace_period=RUNGS[0],
        max_t=RUNGS[0] * KEEP ** len(RUNGS) - 1,  # no rung near the end: it lands then
        reduction_factor=KEEP,
        stop_last_trials=False,
    )


def _halt() -> Any:
    """Ends a search once those that ran when it was asked to stop are over."""
    from ray.tune import Stopper

    class Halt(Stopper):  # type: ignore[misc]
        def __init__(self) -> None:
            self.running: set[int] = set()
            self._waited_for: set[int] | None = None

        @property
        def asked(self) -> bool:
            return self._waited_for is not None

        def ask(self) -> None:
            if self._waited_for is None:
                self._waited_for = set(self.running)

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return self._waited_for is not None and not self._waited_for & self.running

    return Halt()


def _listener(heard: "queue.Queue[Seen]", halt: Any) -> Any:
    """Passes on what Tune says of trials, in its own thread."""
    from ray.tune import Callback

    class Listener(Callback):  # type: ignore[misc]
        def __init__(self, heard: "queue.Queue[Seen]", halt: Any) -> None:
            self._heard, self._halt, self._over = heard, halt, set[int]()

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune writes its callbacks down, for a way to go on that is not used here

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._halt.running.add(_number(trial))

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
        ) -> None:
            if "value" not in result:
                self._heard.put(_seen(trial, result, "running"))
                return
            self._over.add(_number(trial))
            self._halt.running.discard(_number(trial))
            self._heard.put(_seen(trial, result, "over", value=result["value"]))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._halt.running.discard(_number(trial))
            if (
                _number(trial) not in self._over and not self._halt.asked
            ):  # which ends what never began
                self._heard.put(_seen(trial, trial.last_result, "ended early"))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._halt.running.discard(_number(trial))
            fault = last_line(trial.get_error() or RuntimeError("its process died"))
            self._heard.put(_seen(trial, trial.last_result, "failed", fault=fault))

    return Listener(heard, halt)


def _number(trial: Any) -> int:
    return int(trial.config["trial"][0])


def _seen(trial: Any, result: Mapping[str, Any] | None, state: State, **more: Any) -> Seen:
    found = result or {}
    return Seen(_number(trial), state, found.get("percent", 0), found.get("measure"), **more)


def _in_trial(config: dict[str, Any], work: Work, given: dict[str, Any], threads: int) -> None:
    """A process that Ray has begun for a trial."""
    import torch

    from ray import tune

    torch.set_num_threads(threads)
    told = {"percent": 0, "measure": WORST}  # where nothing is told nobody is judged beside it

    def tell(percent: int, measure: float) -> None:
        told.update(percent=percent, measure=measure if math.isfinite(measure) else WORST)
        tune.report(dict(told))

    value = work(given, config["trial"][1], tell)
    tune.report({**told, "value": value})
