"""Devices that fail, put into a worker process: what no machine has at hand when it is wanted."""

from __future__ import annotations

import os
import time
from typing import Any

import av
from vfs_mp4 import decode

_plain = decode._context
_count = [0]


def put_in(kind: str, after: int) -> None:
    """From now on contexts on a device fail when they have had `after` samples, and are counted.

    kind: `errors` raises, `silent` gives no frame any more, `dies` ends the process, `hangs`, `works`.
    """
    _count[0] = 0

    def context(entry: Any, device: str) -> Any:
        made = _plain(entry, "")
        _count[0] += bool(device)
        return _Device(made, kind, after) if device else made

    decode._context = context


def asked() -> int:
    """Contexts on a device since `put_in`."""
    return _count[0]


def crash_probe() -> None:
    """From now on looking for a device ends the process."""

    def probe() -> tuple[str, str]:
        os._exit(1)

    decode.probe = probe


class _Device:
    """A codec context that decodes in software, and says that it does not."""

    is_hwaccel = True
    skip_frame = "DEFAULT"

    def __init__(self, context: Any, kind: str, after: int) -> None:
        self._context, self._kind, self._left = context, kind, after

    def decode(self, packet: Any) -> Any:
        self._left -= packet is not None
        if self._kind == "works" or self._left >= 0:
            return self._context.decode(packet)
        if self._kind == "dies":
            os._exit(1)
        if self._kind == "hangs":
            time.sleep(60)
        if self._kind == "errors":
            raise av.error.ExternalError(1, "the device was lost")
        return []

    def flush_buffers(self) -> None:
        self._context.flush_buffers()
