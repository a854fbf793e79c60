"""Metadata of files in a folder, where a file system has a place for it.

`mtime` (seconds since the epoch, decimal with a fraction, as rclone writes it), `mode` (octal; the nine
permissions alone, so that nobody is given a program that runs as its owner), `uid` and `gid` are the file's
own. Any other name is the extended attribute `user.reelfs.meta.NAME`. `symlink-target` is a symbolic link,
which `localwrite` makes. What a file system refuses (no attributes, another's owner) is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from vfs.storage.base import LINK_METADATA, decoded, encoded

PREFIX = "user.reelfs.meta."
#: The text of a symbolic link, as `base.encoded` writes it.
TARGET = LINK_METADATA
_OWN = frozenset({"mtime", "mode", "uid", "gid", TARGET})
_NUMBER = re.compile(r"\d{1,10}")


def told_of(path: str, status: os.stat_result) -> dict[str, str]:
    """What a file or folder tells of itself. path: followed where it is a link."""
    told = {
        "mtime": seconds(status.st_mtime_ns),
        "mode": f"{status.st_mode:o}",
        "uid": str(status.st_uid),
        "gid": str(status.st_gid),
    }
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith(PREFIX):
                told[name.removeprefix(PREFIX)] = os.fsdecode(os.getxattr(path, name))
    return told


def link_told(text: str) -> str:
    """The text of a link as metadata."""
    return encoded(text)


def link_text(told: Mapping[str, str]) -> str:
    """The text of a link that metadata tells."""
    return decoded(told[TARGET])


def apply(descriptor: int, told: Mapping[str, str], *, replace: bool = False) -> None:
    """Give a file or folder its metadata. replace: attributes that are not told go."""
    status = os.fstat(descriptor)
    _attributes(descriptor, {name: text for name, text in told.items() if name not in _OWN}, replace=replace)
    owner = [int(told[name]) if _NUMBER.fullmatch(told.get(name, "")) else -1 for name in ("uid", "gid")]
    if owner != [-1, -1]:
        with contextlib.suppress(OSError, OverflowError):
            os.fchown(descriptor, *owner)
    with contextlib.suppress(KeyError, ValueError, OSError):
        mode = int(told["mode"], 8) & 0o777
        if mode != stat.S_IMODE(status.st_mode):
            os.fchmod(descriptor, mode)
    if (at := mtime_ns(told)) is not None:
        os.utime(descriptor, ns=(status.st_atime_ns, at))


def _attributes(descriptor: int, told: Mapping[str, str], *, replace: bool) -> None:
    with contextlib.suppress(OSError):
        if replace:
            for name in os.listxattr(descriptor):
                if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in told:
                    os.removexattr(descriptor, name)
    for name, text in told.items():
        with contextlib.suppress(OSError, ValueError):
            os.setxattr(descriptor, PREFIX + name, os.fsencode(text))


def seconds(ns: int) -> str:
    """A time as text, to the nanosecond: `1700000000.123456789`."""
    return f"{Decimal(ns).scaleb(-9):f}"


def mtime_ns(told: Mapping[str, str]) -> int | None:
    """The time that is told, nanoseconds since the epoch; None where there is none that a file can have."""
    try:
        at = int(Decimal(told["mtime"]).scaleb(9).to_integral_value())
    except (KeyError, InvalidOperation, ValueError, OverflowError):
        return None
    return at if -(1 << 62) < at < 1 << 62 else None
