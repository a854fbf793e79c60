"""Around mount(2): what is refused before it, with which options it is done, what is tuned after it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import quote

from vfs.config import Settings
from vfs.doctor import fuse_checks, source_problem
from vfs.errors import ConfigError
from vfs.mounts import absolute, mountpoint_problem

log = logging.getLogger("vfs.mounting")

#: KiB the kernel reads ahead of a sequential reader: READs of 1 MiB, the largest FUSE has. The default of
#: 128 serves less than half as much from memory.
READ_AHEAD_KIB = 1024
#: Reads of the page cache in flight at once; the kernel's default of 12 starves 16 readers.
MAX_BACKGROUND = 64
#: The kernel stops reading ahead for everybody above this many (its own default is three quarters, too).
CONGESTION = 48


def check(settings: Settings) -> Path:
    """The mountpoint, when it can be mounted on. Raises ConfigError: one line, with the mend."""
    if not settings.source or settings.mountpoint is None:
        raise ConfigError("a mount needs a source and a mountpoint")
    problems = [
        source_problem(settings.source),
        mountpoint_problem(settings.mountpoint, nonempty=settings.nonempty),
        _overlap(settings),
        *(f"{c.text}: {c.mend}" for c in fuse_checks(settings) if c.state == "fail"),
    ]
    for problem in filter(None, problems):
        raise ConfigError(problem)
    return settings.mountpoint


def _overlap(settings: Settings) -> str | None:
    """A folder mounted on itself or inside itself would be read through its own mount: it would hang."""
    path = settings.source.removeprefix("file://")
    if "://" in path or settings.mountpoint is None:
        return None
    source, mountpoint = os.path.realpath(path), os.path.realpath(settings.mountpoint)
    if os.path.commonpath((source, mountpoint)) in (source, mountpoint):
        return f"{mountpoint} and {source} contain one another: mount on a folder outside of the source"
    return None


def options(settings: Settings) -> set[str]:
    """The options of mount(2) and libfuse.

    Never `max_read` (the mount does not answer with it) nor `auto_unmount` (a daemon that died would leave
    an empty folder, which programs take for the truth).
    """
    chosen = {
        *(
            "default_permissions",
            "rw" if settings.writes else "ro",
            "nosuid",
            "nodev",
            "noatime",
            "subtype=reelfs",
        ),
        # pyfuse3 takes ASCII only, and a comma would end the option.
        f"fsname={quote(settings.source, safe='/:@+=._~-', errors='surrogateescape')}",
    }
    if settings.allow_other:
        chosen.add("allow_other")
    return chosen


def device_of(mountpoint: Path) -> str | None:
    """`MAJOR:MINOR` of the mount at a path, without touching it."""
    wanted = absolute(mountpoint)
    device = None
    for line in Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and _unescaped(fields[4]) == wanted:
            device = fields[2]
    return device


def _unescaped(text: str) -> str:
    r"""mountinfo writes a space as `\040`, and so on."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def tune(device: str | None, *, sys: Path = Path("/sys")) -> None:
    """Let the kernel read further ahead and more at once; root only, without it all works, slower.

    device: `MAJOR:MINOR` of the mount.
    """
    if device is None:
        return
    connection = sys / "fs/fuse/connections" / device.partition(":")[2]
    wanted = [
        (sys / "class/bdi" / device / "read_ahead_kb", READ_AHEAD_KIB),
        (connection / "max_background", MAX_BACKGROUND),
        (connection / "congestion_threshold", CONGESTION),
    ]
    for file, value in wanted:
        try:
            file.write_text(f"{value}\n")
        except OSError as error:
            log.debug("%s stays as it is: %s", file, error.strerror)
