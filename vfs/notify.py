"""What a service manager is told: sd_notify(3) over `$NOTIFY_SOCKET`, and the watchdog's beat."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

import trio

log = logging.getLogger("vfs.notify")

#: Seconds between two lines of status where no watchdog asks for more.
STATUS_INTERVAL = 10.0


class Notifier:
    """Tells a service manager; where there is none, nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET") or ""
        self._watchdog = _watchdog_seconds(environ)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def say(self, *lines: str) -> None:
        """Assignments as `READY=1`. One that cannot be told is no trouble of the mount: it is logged."""
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.connect(name)
                notify.send("\n".join(lines).encode("utf-8", "replace"))
        except OSError as error:
            log.info("%s: %s", self._address, error.strerror)

    def ready(self) -> None:
        """The mount answers."""
        self.say("READY=1")

    def reloading(self) -> None:
        """Settings are being read again; `ready` ends it."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self.say("STOPPING=1", "STATUS=unmounting")

    def beat(self, status: str) -> None:
        """The event loop turns."""
        self.say("WATCHDOG=1", f"STATUS={status}")

    async def run(self, status: Callable[[], str]) -> None:
        """Beat, twice in each interval of the watchdog, until cancelled. status: one line for people."""
        if not self._address:
            return
        interval = min(STATUS_INTERVAL, (self._watchdog or STATUS_INTERVAL * 2) / 2)
        while True:
            self.beat(status())
            await trio.sleep(interval)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """The interval a service manager asks of this process (sd_watchdog_enabled(3)), or None."""
    pid = environ.get("WATCHDOG_PID")
    try:
        seconds = int(environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 and pid in (None, "", str(os.getpid())) else None
