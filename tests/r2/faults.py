"""What goes wrong in the server on demand, and what was asked of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

KINDS = {
    "status": "answer with `status` and `code`; the body has been read",
    "reset": "TCP reset, after `after` bytes of the body (all of it where the request has had its effect)",
    "hang": "say nothing until `heal`, until the client leaves, or for `seconds`; then a reset",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and the requests it hits.

    operation, key: patterns as in fnmatch (`Put*`, `games/*`). skip: so many matching requests pass first.
    times: then so many are hit (-1 = all). share: of each, drawn with a fixed seed. done: the request has its
    effect, and only its answer is spoilt. See `KINDS` for the kinds.
    """

    kind: str = "status"
    operation: str = "*"
    key: str = "*"
    times: int = 1
    skip: int = 0
    share: float = 1.0
    done: bool = False
    status: int = 503
    code: str = "ServiceUnavailable"
    retry_after: str | None = None
    after: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind}; there are {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. status: of the answer, 0 without one. received, sent: bytes of bodies. at: seconds."""

    operation: str
    bucket: str
    key: str
    status: int
    received: int
    sent: int
    at: float


class Ledger:
    """Faults in force and the log. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[dict[str, Any]] = []
        self._random = random.Random(11)
        self._log: list[Entry] = []
        self.healed = threading.Event()

    def add(self, told: Mapping[str, Any]) -> None:
        """One more fault, as the JSON of a `Fault`."""
        fault = asdict(Fault(**told))
        with self._lock:
            self.healed.clear()
            self._faults.append(fault)

    def heal(self) -> None:
        """No more faults; what hangs is let go."""
        with self._lock:
            self._faults.clear()
            self.healed.set()

    def strikes(self, operation: str, key: str) -> Fault | None:
        """The first fault that hits a request."""
        with self._lock:
            for fault in self._faults:
                if not fault["times"] or not fnmatchcase(operation, fault["operation"]):
                    continue
                if not fnmatchcase(key, fault["key"]):
                    continue
                if fault["skip"]:
                    fault["skip"] -= 1
                    continue
                if fault["share"] < 1.0 and self._random.random() >= fault["share"]:
                    continue
                fault["times"] -= 1 if fault["times"] > 0 else 0
                return Fault(**fault)
        return None

    def note(self, entry: Entry) -> None:
        """Log a request."""
        with self._lock:
            self._log.append(entry)

    def log(self) -> list[dict[str, Any]]:
        """The requests so far."""
        with self._lock:
            return [asdict(entry) for entry in self._log]

    def forget(self) -> None:
        """Begin the log anew."""
        with self._lock:
            self._log.clear()
