"""What a day has cost so far, and where it has to stop: operations by price class and bytes, per UTC day.

The figures of the day survive a restart in a small file beside the cache. A limit that is reached turns every
further request into EDQUOT with its reason, until midnight UTC or until the limit is raised (SIGHUP): what is
cached is still read.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vfs.errors import OverBudget
from vfs.telemetry import class_of

log = logging.getLogger("vfs.usage")

#: Requests between two times the file is written.
SAVED_EVERY = 200


class Usage:
    """The meter of one mount. limits: `class_a`, `class_b`, `egress` a day, 0 = none. file: where the day's
    figures are kept, None = nowhere.
    """

    def __init__(
        self,
        limits: Mapping[str, int] | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = dict(limits or {})
        self._file = file
        self._clock = clock
        self._day = ""
        self._figures = {"class_a": 0, "class_b": 0, "egress": 0}
        self._unsaved = 0
        self._told: set[str] = set()
        self._load()

    @property
    def today(self) -> dict[str, int]:
        """`class_a`, `class_b` and `egress` (bytes) since midnight UTC."""
        self._turn()
        return dict(self._figures)

    @property
    def reached(self) -> dict[str, int]:
        """1 for each limit that is reached, 0 for the others that are set."""
        today = self.today
        return {name: int(today[name] >= most) for name, most in self.limits.items() if most}

    def request(self, operation: str) -> None:
        """One more request is about to be sent. Raises OverBudget: then it must not be."""
        self._turn()
        if (price_class := class_of(operation)) == "free":
            return
        name = f"class_{price_class.lower()}"
        self._check(name)
        if operation == "get":
            self._check("egress")
        self._figures[name] += 1
        self._note()

    def read(self, length: int) -> None:
        """So many bytes of bodies came."""
        self._figures["egress"] += length

    def _check(self, name: str) -> None:
        most = self.limits.get(name, 0)
        if not most or self._figures[name] < most:
            return
        text = f"limits.{name}_per_day: {most} are used up until midnight UTC"
        if name not in self._told:
            self._told.add(name)
            log.error("%s: only what is cached is read from now on", text)
        raise OverBudget(text)

    def _turn(self) -> None:
        """At midnight the count begins anew."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        if day != self._day:
            self._day, self._figures = day, dict.fromkeys(self._figures, 0)
            self._told.clear()

    def _note(self) -> None:
        self._unsaved += 1
        if self._unsaved >= SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, whole; where that fails the figures of a restart are lost, no more."""
        self._unsaved = 0
        if self._file is None:
            return
        new = self._file.with_suffix(".new")
        with suppress(OSError):
            new.write_text(json.dumps({"day": self._day, **self._figures}))
            new.replace(self._file)

    def _load(self) -> None:
        self._turn()
        found: Any = None
        if self._file is not None:
            with suppress(OSError, ValueError):
                found = json.loads(self._file.read_text())
        if isinstance(found, dict) and found.get("day") == self._day:
            for name in self._figures:
                if isinstance(found.get(name), int):
                    self._figures[name] = max(0, found[name])


def usage_file(cache_dir: Path | None, url: str) -> Path | None:
    """Where the figures of a source are kept."""
    from hashlib import sha256

    if cache_dir is None or not os.path.isdir(cache_dir):
        return None
    return cache_dir / f"usage-{sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.json"
