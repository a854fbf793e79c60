"""What the kernel says about mounts: which are ours, which are dead, and whether a folder can take one."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from vfs.errors import ReelfsError

#: The type of our mounts in /proc/self/mountinfo and for `mount -t`.
FSTYPE = "fuse.reelfs"
#: "Busy" is asked again this often, so many seconds apart.
_BUSY_ATTEMPTS = 5
_BUSY_PAUSE = 0.1
_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo."""

    path: str
    fstype: str
    source: str
    read_only: bool = False

    @property
    def ours(self) -> bool:
        """True for a mount of reelfs, alive or dead."""
        return self.fstype == FSTYPE


def mounts(mountinfo: Path = _MOUNTINFO) -> list[Mounted]:
    """All mounts this process sees, the newest last. Never touches the mounts themselves."""
    found = []
    for line in mountinfo.read_bytes().decode("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) >= 6 and len(tail) >= 2:
            read_only = "ro" in fields[5].split(",")
            found.append(Mounted(_unescaped(fields[4]), tail[0], _unescaped(tail[1]), read_only))
    return found


def _unescaped(text: str) -> str:
    r"""mountinfo writes space, tab, newline and backslash as `\040` and so on."""
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def mount_at(path: str | os.PathLike[str]) -> Mounted | None:
    """The topmost mount exactly at a path, or None. Works on a dead one."""
    wanted = absolute(path)
    return next((m for m in reversed(mounts()) if m.path == wanted), None)


def mount_of(path: str | os.PathLike[str]) -> Mounted | None:
    """Our mount that a path lies on, or None."""
    wanted = absolute(path)
    around = [m for m in mounts() if f"{wanted}/".startswith(m.path.rstrip("/") + "/")]
    innermost = max(reversed(around), key=lambda m: len(m.path), default=None)
    return innermost if innermost is not None and innermost.ours else None


def absolute(path: str | os.PathLike[str]) -> str:
    """A path as mountinfo writes it: links of the parents are followed, the last component is not asked
    about (a dead or hanging mount must not be touched)."""
    head, tail = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(head), tail) if tail else head


def is_dead(path: str | os.PathLike[str]) -> bool:
    """True when the daemon of a mount is gone: "Transport endpoint is not connected"."""
    try:
        os.statvfs(path)  # not stat: the kernel may answer that from what it remembers of the root
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(path: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Unmount what we mounted at a path, dead or alive, and wait until it is gone. Raises ReelfsError."""
    mounted = mount_at(path)
    if mounted is None or not mounted.ours:
        raise ReelfsError(f"{path} is not a reelfs mount")
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise ReelfsError("fusermount3 is missing: install the package fuse3")
    command = [tool, "-u", *(["-z"] if lazy else []), mounted.path]
    for attempt in range(_BUSY_ATTEMPTS):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        # Right after a mount or a read the kernel may hold it for a moment longer.
        if "busy" not in done.stderr.lower() or attempt == _BUSY_ATTEMPTS - 1:
            break
        time.sleep(_BUSY_PAUSE)
    if "busy" in done.stderr.lower():
        raise ReelfsError(
            f"{path} is in use: close what reads it (`fuser -vm {path}` says who), or add --lazy to detach it"
        )
    raise ReelfsError(done.stderr.strip() or f"{tool} failed with exit code {done.returncode}")


def ended(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


def mountpoint_problem(path: Path, *, nonempty: bool = False) -> str | None:
    """Why a folder cannot be mounted on, with the mend; None when it can."""
    if (mounted := mount_at(path)) is not None and mounted.ours:
        if is_dead(path):
            return f"{path} is a dead mount: run `reelfs umount {path}` first"
        return f"{path} is busy: {mounted.source} is mounted there already (`reelfs umount {path}`)"
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return f"{path} does not exist: run `mkdir -p {path}` first"
    except NotADirectoryError:
        return f"{path} is not a folder"
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return f"{path} is a dead mount of another file system: run `fusermount3 -u {path}` first"
        return f"{path} cannot be read: {error.strerror}"
    if names and not nonempty:
        return f"{path} is not empty, and what is in it would be hidden: choose another, or add `-o nonempty`"
    return None
