"""Every exception that lamina raises on purpose, in one tree.

    LaminaError                     exit code 2 unless it says otherwise
    ├── UsageError (ValueError)     an option, recipe key, name or reference is wrong
    │   └── UnknownNameError (LookupError)   the name or digest is well formed, but nothing has it
    ├── DataError (ValueError)      rows that cannot be read or trained on
    ├── BaseError (ValueError)      a base cannot be fetched, converted or used
    ├── LayerError (ValueError)     a layer's payload is unusable
    │   └── WrongParentError        it was trained on another base or stack
    ├── StoreError (OSError)        the store cannot do what was asked
    │   ├── CorruptBlobError        bytes do not match their digest
    │   ├── MissingBlobError (LookupError)
    │   ├── StoreFullError          no space left
    │   ├── ReadOnlyStoreError
    │   └── StoreBusyError (TimeoutError)    another process holds the lock
    ├── ShareError (ConnectionError)    a registry, a Hub or an archive cannot do what was asked
    │   └── DroppedError            the connection broke or the place is busy: worth another try
    ├── TrainError (RuntimeError)   training cannot go on
    │   └── TrainInterrupted        stopped on request; the run can be resumed
    ├── FleetError (RuntimeError)   a cluster, or the workers on it, cannot do what was asked
    ├── BusyError (RuntimeError)    the engine takes no further request now
    ├── MissingPartError (ImportError)       an optional library is not installed
    └── CheckError (AssertionError) exit code 1: a check said no (parity, verify, reproduce)
        ├── GateError               exit code 1: the gate said no
        └── TrustError              exit code 1: the trust policy said no, or a signature is wrong

Rules for adding one: it must be something a caller handles differently from its parent, it is also
a standard-library type, and its message says what to do next. Gather all faults, raise once.
"""

from collections.abc import Iterable

SHOWN_FAULTS = 20


class LaminaError(Exception):
    """Base of the tree. `faults` lists every single problem; `hint` says what to do next."""

    exit_code = 2

    def __init__(
        self, message: str, *, faults: Iterable[str] = (), hint: str | None = None
    ) -> None:
        self.message = message
        self.faults = tuple(faults)
        self.hint = hint
        super().__init__(self.render())

    def render(self) -> str:
        """The whole text for people: message, at most SHOWN_FAULTS faults, hint."""
        lines = [self.message]
        lines += [f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  … and {len(self.faults) - SHOWN_FAULTS} more")
        if self.hint:
            lines.append(f"  → {self.hint}")
        return "\n".join(lines)


class UsageError(LaminaError, ValueError):
    """An option, recipe key, name or reference is wrong."""


class UnknownNameError(UsageError, LookupError):
    """A well-formed name or digest that nothing in the store has."""


class DataError(LaminaError, ValueError):
    """Rows that cannot be read or trained on; one fault a row, with its line number."""


class BaseError(LaminaError, ValueError):
    """A base that cannot be fetched, converted or used."""


class LayerError(LaminaError, ValueError):
    """A layer whose payload is unusable; one fault a tensor."""


class WrongParentError(LayerError):
    """A layer put over a base or stack that it was not trained on."""


class StoreError(LaminaError, OSError):
    """The store cannot do what was asked."""


class CorruptBlobError(StoreError):
    """Stored bytes do not match their digest."""


class MissingBlobError(StoreError, LookupError):
    """An object names a blob that the store does not hold."""


class StoreFullError(StoreError):
    """No space left on the device, or over quota."""


class ReadOnlyStoreError(StoreError):
    """The store cannot be written."""


class StoreBusyError(StoreError, TimeoutError):
    """Another process held the store's lock for too long."""


class ShareError(LaminaError, ConnectionError):
    """Another place (a registry, a Hub, an archive) cannot be reached, or refuses."""

    status: int | None = None
    """The HTTP status, where it refused with one."""
    retry_after: float | None = None
    """Seconds that it asks us to wait."""


class DroppedError(ShareError):
    """The connection broke, or the place is overloaded: worth another try."""


class TrainError(LaminaError, RuntimeError):
    """Training cannot go on."""


class TrainInterrupted(TrainError):
    """Training stopped on request; its message says how to resume."""

    exit_code = 130


class FleetError(LaminaError, RuntimeError):
    """A cluster does not answer, or the workers on it did not come to an end."""


class BusyError(LaminaError, RuntimeError):
    """The engine takes no further request now: its queue is full, or it is being shut down."""


class MissingPartError(LaminaError, ImportError):
    """An optional library is not installed; the hint says which extra brings it."""


class CheckError(LaminaError, AssertionError):
    """A check said no."""

    exit_code = 1


class GateError(CheckError):
    """The gate said no: an inherited exam got significantly worse."""


class TrustError(CheckError):
    """The trust policy said no, or a signature is wrong."""
