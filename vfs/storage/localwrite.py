"""Writing into a folder: a file appears under its name whole, and only where it was to appear.

A body is written to a file in `.reelfs-uploads` in the folder's root (which is never listed), made durable,
and renamed: onto nothing (RENAME_NOREPLACE), or exchanged with what is there (RENAME_EXCHANGE) and exchanged
back should that turn out to be another version. Folders are entered step by step, so that no symbolic link
leads out. A folder that loses its last file stays: folders are made and removed by their markers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from vfs.durable import sync_folder
from vfs.errors import Denied, NotFound, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage import localmeta
from vfs.storage.base import Body, Part

#: Where bodies wait for their names; the one folder below the root that is not listed.
UPLOADS = ".reelfs-uploads"
_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")
Metadata = Mapping[str, str]
Inside = Callable[[int], bool]
Version = Callable[[os.stat_result], str]


class Writer:
    """Writes below `root`. inside: whether a descriptor leads inside it. version: of a file."""

    def __init__(self, root: str, inside: Inside, version: Version) -> None:
        self._root = root
        self._inside = inside
        self._version = version

    def put(
        self, key: str, body: Body, replaces: StoredObject | None, metadata: Metadata | None
    ) -> os.stat_result | None:
        """Store a file, make a symbolic link (None: the store looks itself) or a folder.

        Raises Stale, NotFound, Denied, StoreError.
        """
        told = metadata or {}
        with self._errors(key):
            if key.endswith("/"):
                return self._make_folder(key, body, replaces, told)
            if localmeta.TARGET in told:
                self._make_link(key, replaces, told)
                return None
            with self._waiting() as (path, descriptor):
                _write_all(descriptor, memoryview(body))
                return self._publish(key, path, descriptor, replaces, told)

    def copy(
        self,
        source: int,
        key: str,
        replaces: StoredObject | None,
        metadata: Metadata,
        check: Callable[[], None],
    ) -> os.stat_result:
        """Store a file that is open once more; its blocks are shared where the file system can.

        check: raises Stale when the source has changed.
        """
        with self._errors(key), self._waiting() as (path, descriptor):
            _copy_all(source, descriptor)
            check()
            return self._publish(key, path, descriptor, replaces, metadata)

    def describe(self, stored: StoredObject, metadata: Metadata) -> os.stat_result:
        """Change the metadata of a file or folder where it is."""
        with self._errors(stored.key), self._parent(stored.key, make=False) as (folder, name):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
            try:
                self._check_status(stored, os.fstat(descriptor))
                localmeta.apply(descriptor, metadata, replace=True)
                os.fsync(descriptor)
                return os.fstat(descriptor)
            finally:
                os.close(descriptor)

    def delete(self, stored: StoredObject) -> None:
        """Remove this version."""
        with self._errors(stored.key), self._parent(stored.key, make=False) as (folder, name):
            self._check(stored, name, folder)
            if stored.key.endswith("/"):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            os.fsync(folder)

    def start(self, key: str, metadata: Metadata | None) -> str:
        """A folder for the parts of an upload; its name."""

        def make(uploads: str) -> str:
            upload = f"{secrets.token_hex(8)}.parts"
            os.mkdir(f"{uploads}/{upload}", 0o700)
            return upload

        with self._errors(key), self._in_uploads(make) as (uploads, upload):
            folder = f"{uploads}/{upload}"
            told = json.dumps(dict(metadata or {})).encode()
            for name, text in (("metadata", told), ("key", os.fsencode(key))):
                with open(f"{folder}/{name}", "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            for made in (folder, uploads, self._root):
                sync_folder(made)
            return upload

    def part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Keep one part."""
        with self._errors(key), self._folder(key, upload) as folder:
            path = f"{folder}/{number}"
            with open(path + ".new", "wb", buffering=0) as file:
                _write_all(file.fileno(), memoryview(body))
                os.fsync(file.fileno())
            os.replace(path + ".new", path)
            sync_folder(folder)
        return Part(number, str(len(body)))

    def complete(
        self, key: str, upload: str, parts: Sequence[Part], replaces: StoredObject | None
    ) -> os.stat_result:
        """Join the parts under the key."""
        with self._errors(key), self._folder(key, upload) as folder, self._waiting() as (path, descriptor):
            for part in parts:
                with open(f"{folder}/{part.number}", "rb") as file:
                    _copy_all(file.fileno(), descriptor)
            with open(f"{folder}/metadata") as told:
                metadata = json.load(told)
            try:
                return self._publish(key, path, descriptor, replaces, metadata)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                self._tidy()

    def abort(self, key: str, upload: str) -> None:
        """Drop the parts of an upload."""
        with contextlib.suppress(NotFound), self._folder(key, upload) as folder:
            shutil.rmtree(folder, ignore_errors=True)
            self._tidy()

    def uploads(self, prefix: str) -> dict[str, str]:
        """Keys of uploads under way, by name."""
        found = {}
        with contextlib.suppress(FileNotFoundError), self._uploads() as path, os.scandir(path) as entries:
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

    @contextlib.contextmanager
    def _uploads(self) -> Iterator[str]:
        """A path to the folder of uploads that leads there whatever comes to have its name: who else may
        write to the source could put a link there. Raises FileNotFoundError, Denied.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(f"{self._root}/{UPLOADS}", flags)
        except NotADirectoryError:
            raise Denied(f"{UPLOADS} in the source is no folder: remove it") from None
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _folder(self, key: str, upload: str) -> Iterator[str]:
        with contextlib.ExitStack() as stack:
            folder = ""
            with contextlib.suppress(FileNotFoundError):
                folder = f"{stack.enter_context(self._uploads())}/{upload}"
            if "/" in upload or not upload.endswith(".parts") or not os.path.isdir(folder):
                raise NotFound(f"no such upload of {key}")
            yield folder

    @contextlib.contextmanager
    def _in_uploads(self, make: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        """Make something in the folder of uploads, which another writer may just be taking away, empty. That
        folder, and what was made.
        """
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(f"{self._root}/{UPLOADS}", 0o700)
                    folder = stack.enter_context(self._uploads())
                    made = make(folder)
                    break
                except FileNotFoundError:
                    stack.close()
                    if not os.path.isdir(self._root):
                        raise
            yield folder, made

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[tuple[str, int]]:
        """A new file without a name of its own yet; gone afterwards where it was not renamed."""

        def make(folder: str) -> tuple[str, int]:
            path = f"{folder}/{secrets.token_hex(8)}.new"
            return path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)

        with self._in_uploads(make) as (_, (path, descriptor)):
            try:
                yield path, descriptor
            finally:
                os.close(descriptor)
                self._drop(path)

    def _drop(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._tidy()

    def _make_link(self, key: str, replaces: StoredObject | None, told: Metadata) -> None:
        """A symbolic link; where it leads is its reader's affair (`local` follows none that leads out)."""

        def make(folder: str) -> str:
            path = f"{folder}/{secrets.token_hex(8)}.new"
            os.symlink(localmeta.link_text(told), path)
            return path

        with self._in_uploads(make) as (_, path):
            try:
                if (at := localmeta.mtime_ns(told)) is not None:
                    os.utime(path, ns=(at, at), follow_symlinks=False)
                self._named(key, path, replaces)
            finally:
                self._drop(path)

    def _make_folder(
        self, key: str, body: Body, replaces: StoredObject | None, told: Metadata
    ) -> os.stat_result:
        if len(body):
            raise StoreError(f"{key}: a folder has no bytes")
        if replaces is not None:
            return self.describe(replaces, told)
        with self._parent(key, make=True) as (folder, name):
            try:
                os.mkdir(name, dir_fd=folder)
            except FileExistsError:
                raise Stale(f"{key} is there already") from None
            descriptor = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            try:
                localmeta.apply(descriptor, told)
                os.fsync(folder)
                return os.fstat(descriptor)
            finally:
                os.close(descriptor)

    def _publish(
        self, key: str, path: str, descriptor: int, replaces: StoredObject | None, told: Metadata
    ) -> os.stat_result:
        localmeta.apply(descriptor, told)
        os.fsync(descriptor)
        self._named(key, path, replaces)
        return os.fstat(descriptor)

    def _named(self, key: str, path: str, replaces: StoredObject | None) -> None:
        with self._parent(key, make=replaces is None) as (folder, name):
            if replaces is None:
                self._rename_new(path, folder, name, key)
            else:
                self._exchange(path, folder, name, replaces)
            os.fsync(folder)

    def _rename_new(self, path: str, folder: int, name: str, key: str) -> None:
        try:
            _renameat2(path, folder, name, _NOREPLACE)
        except FileExistsError:
            raise Stale(f"{key} is there already") from None

    def _exchange(self, path: str, folder: int, name: str, replaces: StoredObject) -> None:
        """What comes out must be what was to be replaced, else it goes back."""
        before = self._check(replaces, name, folder)
        _renameat2(path, folder, name, _EXCHANGE)
        if self._version(os.stat(path, follow_symlinks=False)) != self._version(before):
            _renameat2(path, folder, name, _EXCHANGE)
            raise Stale(f"{replaces.key} was replaced")

    def _check(self, stored: StoredObject, name: str, folder: int) -> os.stat_result:
        """What has the name must be this version; of a symbolic link its own or that of what it leads to."""
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            self._check_status(stored, status)
        elif self._version(status) != stored.version:
            try:
                self._check_status(stored, os.stat(name, dir_fd=folder))
            except OSError:
                raise Stale(f"{stored.key} was replaced") from None
        return status

    def _check_status(self, stored: StoredObject, status: os.stat_result) -> None:
        is_kind = stat.S_ISDIR if stored.key.endswith("/") else stat.S_ISREG
        if not is_kind(status.st_mode):
            raise NotFound(f"{stored.key} is no {'folder' if stored.key.endswith('/') else 'file'} any more")
        if self._version(status) != stored.version:
            raise Stale(f"{stored.key} was replaced")

    @contextlib.contextmanager
    def _parent(self, key: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder a key lies in, and its name there."""
        *folders, name = parts = key.removesuffix("/").split("/")
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
            os.fsync(at)  # also if another writer made it: the file that is to be in it counts on it
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
            if error.errno == errno.ENOTEMPTY:
                raise Stale(f"{key} is not empty") from None
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise NotFound(f"{key} is gone") from None
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
