"""The files of the disk cache: their format and the blocking calls on them. Run in threads.

`ROOT/IDENTITY/START-LENGTH` (both hexadecimal) holds bytes of one object version. A file is::

    magic 8 | xxh3_128 of the rest of the header 16 | identity 16 | start 8 | length 8 | digests | 0 | body

with one xxh3_128 per 64 KiB of the body, so that a small read checks what it reads without reading all; the
body begins at a multiple of 4 KiB. Files are written beside their place and renamed into it. Nothing is
flushed to the medium: what a power cut leaves behind fails its checksum and counts as absent.

Large bodies go to the disk past the page cache (O_DIRECT), where the file system has that: the kernel keeps
them in the pages of the mount already, and the copy was a quarter of the CPU of a sequential read.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from vfs.errors import ConfigError

CHUNK = 64 * 1024
_DIGEST = 16
#: Where bodies begin, and what a write past the page cache must begin at and be a multiple of.
BLOCK = 4096
_MAGIC = b"reelfsB2"
# Smaller bodies are written the ordinary way: the disk takes longer than the copy.
_DIRECT = 256 * 1024
_FIXED = struct.Struct("<16sQQ")
_HEAD = len(_MAGIC) + _DIGEST + _FIXED.size
_TEMPORARY = ".new"  # one writer, so one name per directory
# What a file takes beside its content, at most: a folder of its own (one block on ext4) and a name in ours.
_FILE_OVERHEAD = 4096 + 64


def header_size(length: int) -> int:
    """Bytes before the body of `length` bytes."""
    return -(-_header_length(length) // BLOCK) * BLOCK


def _header_length(length: int) -> int:
    return _HEAD + _DIGEST * -(-length // CHUNK)


def footprint(length: int) -> int:
    """Bytes of disk that a body of `length` bytes takes, in whole blocks of 4 KiB, overhead included."""
    return -(-(header_size(length) + length) // BLOCK) * BLOCK + _FILE_OVERHEAD


def path_of(root: Path, identity: str, start: int, length: int) -> Path:
    """Where those bytes are kept."""
    return root / identity / f"{start:x}-{length:x}"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that looks right by its name and size. used: seconds since the epoch."""

    identity: str
    start: int
    end: int
    used: float


def lock(directory: Path) -> tuple[Path, int]:
    """Make and lock our own folder below `directory`: its path and the descriptor that holds the lock.

    The folder is the owner's alone. Raises ConfigError where that cannot be, or another process has it.
    """
    root = directory / "blocks-1"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        _make_private(root)
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cache directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, b"%d\n" % os.getpid(), 0)
    except BlockingIOError as error:
        owner = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise ConfigError(
            f"cache directory {directory} is in use by another mount (process {owner or 'unknown'});"
            " give each mount its own"
        ) from error
    except OSError as error:  # the pid is only a courtesy, but a full disk must not look like a lock
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            os.close(handle)
            raise ConfigError(f"cache directory {directory}: {error.strerror}") from error
    return root, handle


def _make_private(root: Path) -> None:
    found = os.lstat(root)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"{root.name} is not a directory of this user")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(root, 0o700)


def scan(root: Path) -> list[Found]:
    """Every file that looks right, least recently used first. Removes what is left of broken writes."""
    found: list[Found] = []
    with os.scandir(root) as folders:
        names = [f.name for f in folders if _is_identity(f.name) and f.is_dir(follow_symlinks=False)]
    for name in names:
        here = scan_object(root, name, clean=True)
        found.extend(here)
        if not here:
            with suppress(OSError):  # not empty: something foreign is in it, and stays
                os.rmdir(root / name)
    found.sort(key=lambda f: f.used)
    return found


def scan_object(root: Path, identity: str, *, clean: bool = False) -> list[Found]:
    """The same for one object. An object that is not there has none.

    clean: remove what is not whole; only while nothing is being written.
    """
    try:
        with os.scandir(root / identity) as entries:
            return list(_scan(entries, identity, clean))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _scan(entries: Iterator[os.DirEntry[str]], identity: str, clean: bool) -> Iterator[Found]:
    for entry in entries:
        span = _parse(entry.name)
        if span is None and entry.name != _TEMPORARY:
            continue
        info = entry.stat(follow_symlinks=False)
        if span is not None and stat.S_ISREG(info.st_mode):
            start, length = span
            if info.st_size == header_size(length) + length:
                yield Found(identity, start, start + length, info.st_mtime)
                continue
        if clean:
            with suppress(OSError):
                os.unlink(entry.path)


def _is_identity(name: str) -> bool:
    return len(name) == 2 * _DIGEST and all(c in "0123456789abcdef" for c in name)


def _parse(name: str) -> tuple[int, int] | None:
    start, dash, length = name.partition("-")
    try:
        span = int(start, 16), int(length, 16)
    except ValueError:
        return None
    return span if dash and span[1] > 0 and name == f"{span[0]:x}-{span[1]:x}" else None


def write(root: Path, identity: str, start: int, body: memoryview) -> None:
    """Write a file whole or not at all. Raises OSError."""
    folder = root / identity
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    temporary = folder / _TEMPORARY
    try:
        if not _write_direct(temporary, identity, start, body):
            with _created(temporary) as handle:
                for part in (memoryview(_header(identity, start, body)), body):
                    _write_all(handle, part)
        os.rename(temporary, path_of(root, identity, start, len(body)))
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def _created(path: Path, flags: int = 0) -> Iterator[int]:
    """A new file, or one that is begun anew."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_direct(path: Path, identity: str, start: int, body: memoryview) -> bool:
    """Write a file past the page cache; False where that cannot be, whatever is in the file by then."""
    whole = len(body) // BLOCK * BLOCK
    if whole < _DIRECT or np.frombuffer(body, np.uint8).ctypes.data % BLOCK:
        return False
    header = _header(identity, start, body)
    try:
        with _created(path, os.O_DIRECT) as handle, mmap.mmap(-1, len(header)) as aligned:
            aligned[:] = header
            if os.pwritev(handle, [aligned, body[:whole]], 0) != len(header) + whole:
                return False
            if whole < len(body):
                fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~os.O_DIRECT)
                os.lseek(handle, len(header) + whole, os.SEEK_SET)
                _write_all(handle, body[whole:])
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _header(identity: str, start: int, body: memoryview) -> bytes:
    digests = (xxhash.xxh3_128_digest(body[at : at + CHUNK]) for at in range(0, len(body), CHUNK))
    rest = _FIXED.pack(bytes.fromhex(identity), start, len(body)) + b"".join(digests)
    header = _MAGIC + xxhash.xxh3_128_digest(rest) + rest
    return header.ljust(header_size(len(body)), b"\0")


def read(root: Path, found: Found, start: int, end: int, *, touch: bool) -> memoryview | None:
    """The bytes [start, end) of the object, checked; None when the file is not what its name says.

    touch: record that it was used now. Raises OSError.
    """
    length = found.end - found.start
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path_of(root, found.identity, found.start, length), flags)
    try:
        digests = _digests(handle, found, length)
        if digests is None:
            return None
        if touch:
            with suppress(OSError):  # a read-only disk still serves
                os.utime(handle)
        first, stop = (start - found.start) // CHUNK, -(-(end - found.start) // CHUNK)
        offset, size = first * CHUNK, min(stop * CHUNK, length) - first * CHUNK
        data = memoryview(os.pread(handle, size, header_size(length) + offset))
        if len(data) != size:
            return None
        for index in range(first, stop):
            at = (index - first) * CHUNK
            if xxhash.xxh3_128_digest(data[at : at + CHUNK]) != digests[index * _DIGEST :][:_DIGEST]:
                return None
    finally:
        os.close(handle)
    wanted = data[start - found.start - offset :][: end - start]
    # What is kept must be as large as it is counted: no view into a larger buffer.
    return wanted if len(wanted) == size else memoryview(bytes(wanted))


def _digests(handle: int, found: Found, length: int) -> bytes | None:
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode) or info.st_size != header_size(length) + length:
        return None
    header = os.pread(handle, _header_length(length), 0)
    rest = header[len(_MAGIC) + _DIGEST :]
    if header[: len(_MAGIC)] != _MAGIC or header[len(_MAGIC) : -len(rest)] != xxhash.xxh3_128_digest(rest):
        return None
    if _FIXED.unpack_from(rest) != (bytes.fromhex(found.identity), found.start, length):
        return None
    return rest[_FIXED.size :]


def remove(root: Path, found: Found) -> None:
    """Remove a file, and its folder with the last. Not being there is fine. Raises OSError."""
    path = path_of(root, found.identity, found.start, found.end - found.start)
    with suppress(FileNotFoundError):
        os.unlink(path)
    with suppress(OSError):
        os.rmdir(path.parent)
