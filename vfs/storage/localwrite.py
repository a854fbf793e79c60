"""Writing into a folder: a file appears under its name whole, and only where it was to appear.

A body is written to a file in `.reelfs-uploads` in the folder's root (which is never listed), made durable,
and renamed: onto nothing (RENAME_NOREPLACE), or exchanged with what is there (RENAME_EXCHANGE) and exchanged
back should that turn out to be another version. Folders are entered step by step, so that no symbolic link
leads out.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence

from vfs.errors import Denied, NotFound, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage.base import Body, Part

#: Where bodies wait for their names; the one folder below the root that is not listed.
UPLOADS = ".reelfs-uploads"
_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

Inside = Callable[[int], bool]
Version = Callable[[os.stat_result], str]


class Writer:
    """Writes below `root`. inside: whether a descriptor leads inside it. version: of a file."""

    def __init__(self, root: str, inside: Inside, version: Version) -> None:
        self._root = root
        self._inside = inside
        self._version = version

    def put(self, key: str, body: Body, replaces: StoredObject | None) -> os.stat_result:
        """Store a file. Raises Stale, NotFound, Denied, StoreError."""
        with self._errors(key), self._waiting() as (path, descriptor):
            _write_all(descriptor, memoryview(body))
            return self._publish(key, path, descriptor, replaces)

    def delete(self, stored: StoredObject) -> None:
        """Remove this version."""
        with self._errors(stored.key), self._parent(stored.key, make=False) as (folder, name):
            self._check(stored, os.stat(name, dir_fd=folder))
            os.unlink(name, dir_fd=folder)
            os.fsync(folder)

    def start(self, key: str) -> str:
        """A folder for the parts of an upload; its name."""
        upload = f"{secrets.token_hex(8)}.parts"
        with self._errors(key):
            os.makedirs(f"{self._root}/{UPLOADS}", mode=0o700, exist_ok=True)
            folder = f"{self._root}/{UPLOADS}/{upload}"
            os.mkdir(folder, 0o700)
            with open(f"{folder}/key", "wb") as file:
                file.write(os.fsencode(key))
        return upload

    def part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Keep one part."""
        path = f"{self._folder(key, upload)}/{number}"
        with self._errors(key), open(path + ".new", "wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(body))
            os.fsync(file.fileno())
            os.replace(path + ".new", path)
        return Part(number, str(len(body)))

    def complete(
        self, key: str, upload: str, parts: Sequence[Part], replaces: StoredObject | None
    ) -> os.stat_result:
        """Join the parts under the key."""
        folder = self._folder(key, upload)
        with self._errors(key), self._waiting() as (path, descriptor):
            for part in parts:
                with open(f"{folder}/{part.number}", "rb") as file:
                    _copy_all(file.fileno(), descriptor)
            try:
                return self._publish(key, path, descriptor, replaces)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                self._tidy()

    def abort(self, key: str, upload: str) -> None:
        """Drop the parts of an upload."""
        with contextlib.suppress(NotFound):
            shutil.rmtree(self._folder(key, upload), ignore_errors=True)
            self._tidy()

    def uploads(self, prefix: str) -> dict[str, str]:
        """Keys of uploads under way, by name."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{self._root}/{UPLOADS}") as entries:
            for entry in entries:
                with contextlib.suppress(OSError), open(f"{entry.path}/key", "rb") as file:
                    key = os.fsdecode(file.read())
                    if key.startswith(prefix):
                        found[entry.name] = key
        return found

    def _tidy(self) -> None:
        """Nothing of ours stays in the folder when nothing is under way."""
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._root}/{UPLOADS}")

    # -- steps ------------------------------------------------------------------------------------------

    def _folder(self, key: str, upload: str) -> str:
        folder = f"{self._root}/{UPLOADS}/{upload}"
        if "/" in upload or not upload.endswith(".parts") or not os.path.isdir(folder):
            raise NotFound(f"no such upload of {key}")
        return folder

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[tuple[str, int]]:
        """A new file without a name of its own yet; gone afterwards where it was not renamed."""
        folder = f"{self._root}/{UPLOADS}"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = f"{folder}/{secrets.token_hex(8)}.new"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._tidy()

    def _publish(self, key: str, path: str, descriptor: int, replaces: StoredObject | None) -> os.stat_result:
        os.fsync(descriptor)
        with self._parent(key, make=replaces is None) as (folder, name):
            if replaces is None:
                self._rename_new(path, folder, name, key)
            else:
                self._exchange(path, folder, name, replaces)
            os.fsync(folder)
        return os.fstat(descriptor)

    def _rename_new(self, path: str, folder: int, name: str, key: str) -> None:
        try:
            _renameat2(path, folder, name, _NOREPLACE)
        except FileExistsError:
            raise Stale(f"{key} is there already") from None

    def _exchange(self, path: str, folder: int, name: str, replaces: StoredObject) -> None:
        """What comes out must be what was to be replaced, else it goes back."""
        self._check(replaces, os.stat(name, dir_fd=folder))
        _renameat2(path, folder, name, _EXCHANGE)
        try:
            self._check(replaces, os.stat(path))
        except Stale:
            _renameat2(path, folder, name, _EXCHANGE)
            raise

    def _check(self, stored: StoredObject, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{stored.key} is no file any more")
        if self._version(status) != stored.version:
            raise Stale(f"{stored.key} was replaced")

    @contextlib.contextmanager
    def _parent(self, key: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder a key lies in, and its name there."""
        *folders, name = parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts) or parts[0] == UPLOADS:
            raise StoreError(f"{key!r} cannot be the path of a file")
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                at, before = self._entered(at, folder, make=make, key=key), at
                os.close(before)
            yield at, name
        finally:
            os.close(at)

    def _entered(self, at: int, folder: str, *, make: bool, key: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            found = os.open(folder, flags, dir_fd=at)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, dir_fd=at)
            found = os.open(folder, flags, dir_fd=at)
        if not self._inside(found):
            os.close(found)
            raise Denied(f"{key}: a link leads out of the source")
        return found

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Errors of the system as ours."""
        try:
            yield
        except FileNotFoundError:
            raise NotFound(f"{key} is gone") from None
        except PermissionError:
            raise Denied(f"{key}: permission denied") from None
        except OSError as error:
            raise StoreError(f"{key}: {error.strerror}") from error


def _renameat2(path: str, folder: int, name: str, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(path), folder, os.fsencode(name), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _write_all(descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _copy_all(source: int, target: int) -> None:
    """Append a file to another, in the kernel where it can."""
    rest = os.fstat(source).st_size
    while rest:
        try:
            count = os.copy_file_range(source, target, rest)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            count = 0
        if not count:
            data = os.read(source, 1 << 20)
            if not data:
                raise OSError(errno.EIO, "a part has fewer bytes than it had")
            _write_all(target, memoryview(data))
            count = len(data)
        rest -= count
