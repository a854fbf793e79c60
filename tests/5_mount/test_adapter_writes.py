"""The handlers that write, without a kernel: what it is told of when they fail, and what rules hold."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from trio.testing import trio_test

from vfs.config import Settings
from vfs.errors import NoRoom, StoreError
from vfs.found import Found
from vfs.fuse import Look
from vfs.fuse_inbox import InboxAdapter
from vfs.fuse_loop import Callers
from vfs.inodes import ROOT
from vfs.nodes import Directory, Inbox, Node
from vfs.pytest_plugin import ExpectedLogs
from vfs.runtime import open_runtime
from vfs.storage.memory import Fault, MemoryStore, Request

ASKER = cast(Any, SimpleNamespace(pid=0, uid=0, gid=0, umask=0))


@asynccontextmanager
async def adapter(folder: Path, store: MemoryStore) -> AsyncIterator[InboxAdapter]:
    options = [f"write.dir={folder}", "write.delay=0", "write.protect=games/"]
    settings = Settings.load({"source": "memory://", "read_write": True}, options=options, environ={})
    async with open_runtime(settings, store=store) as runtime:
        root = await runtime.tree.root()
        assert runtime.writing is not None
        yield InboxAdapter(
            runtime.tree, runtime.reader, root, Look(0, 0), runtime.status, Callers(30.0), runtime.writing
        )


async def errno_of(call: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await call
    return answer.value.errno


@trio_test
async def test_a_create_that_finds_a_protected_file_leaves_no_reference(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Somebody else stored it since the kernel looked: it is opened, which may be refused."""
    expected_logs("write.protect")
    async with adapter(tmp_path, MemoryStore({"games/x": b"x"})) as handlers:
        games = (await handlers.lookup(ROOT, b"games", ASKER)).st_ino
        known = len(handlers.inodes)
        for _ in range(3):
            flags = os.O_WRONLY | os.O_CREAT
            assert await errno_of(handlers.create(games, b"x", 0o644, flags, ASKER)) == errno.EPERM
        assert len(handlers.inodes) == known


@trio_test
async def test_a_file_that_could_not_be_made_safe_leaves_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs("the disk is full")
    async with adapter(tmp_path, MemoryStore()) as handlers:
        known = len(handlers.inodes)

        async def full(*_: object, **__: object) -> None:
            raise NoRoom("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(handlers._drive.journal, "put", full)
            assert await errno_of(handlers.mknod(ROOT, b"x", 0o100644, 0, ASKER)) == errno.ENOSPC
        assert len(handlers.inodes) == known


@trio_test
async def test_a_made_folder_that_takes_no_files_leaves_no_reference(tmp_path: Path) -> None:
    async def nothing() -> dict[str, Node | None]:
        return {}

    async with adapter(tmp_path / "write", MemoryStore()) as handlers:
        inbox = Inbox(staging=tmp_path / "staging", limit=10)
        made = handlers.inodes.remember(Found("made", Directory(entries=nothing, inbox=inbox)))
        known = len(handlers.inodes)
        flags = os.O_WRONLY | os.O_CREAT
        assert await errno_of(handlers.create(made.number, b"x", 0o644, flags, ASKER)) == errno.EROFS
        assert len(handlers.inodes) == known


@trio_test
async def test_what_is_stored_is_protected_also_while_it_is_open(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """A new file below a protected prefix may be written until it is stored; from then on it stays so."""
    expected_logs("write.protect")
    store = MemoryStore({"games/old": b"old"})
    async with adapter(tmp_path, store) as handlers:
        games = (await handlers.lookup(ROOT, b"games", ASKER)).st_ino
        made, shown = await handlers.create(games, b"new", 0o644, os.O_RDWR | os.O_CREAT, ASKER)
        reading = await handlers.open(shown.st_ino, os.O_RDONLY, ASKER)
        await handlers.write(made.fh, 0, b"content")
        await handlers.flush(made.fh)
        await handlers.release(made.fh)
        await handlers._session.flush()
        assert bytes(store._objects["games/new"][1]) == b"content"
        cut, attributes = SimpleNamespace(update_size=True), pyfuse3.EntryAttributes()
        for name in ("mode", "uid", "gid", "mtime", "atime"):
            setattr(cut, f"update_{name}", False)
        assert await errno_of(handlers.open(shown.st_ino, os.O_WRONLY, ASKER)) == errno.EPERM
        fields = cast(Any, cut)
        assert await errno_of(handlers.setattr(shown.st_ino, attributes, fields, None, ASKER)) == errno.EPERM
        cut.update_size, cut.update_mode, attributes.st_mode = False, True, 0o100600
        assert await errno_of(handlers.setattr(shown.st_ino, attributes, fields, None, ASKER)) == errno.EPERM
        assert await errno_of(handlers.setxattr(shown.st_ino, b"user.x", b"y", ASKER)) == errno.EPERM
        assert bytes(await handlers.read(reading.fh, 0, 100)) == b"content"
        await handlers.release(reading.fh)
    assert bytes(store._objects["games/new"][1]) == b"content"


class Bucket(MemoryStore):
    """Keys of up to 1,024 bytes, as R2 and S3 have it, those of the prefix among them."""

    prefix = "p" * 100 + "/"

    @property
    def url(self) -> str:
        return f"r2://bucket/{self.prefix}".rstrip("/")

    async def _asked(self, request: Request) -> Fault | None:
        changes = request.operation not in ("head", "list", "read")
        if changes and len((self.prefix + request.key).encode()) > 1024:
            raise StoreError(f"{request.key[:20]}... cannot be a key")
        return await super()._asked(request)


DEEP = "/".join(["d" * 200] * 4)


async def number_of(handlers: InboxAdapter, path: str) -> int:
    number = ROOT
    for name in path.split("/"):
        number = (await handlers.lookup(number, name.encode(), ASKER)).st_ino
    return number


@trio_test
async def test_a_name_that_could_never_be_sent_is_refused_at_once(tmp_path: Path) -> None:
    """Whoever makes it hears of it: it would wait in the journal for ever."""
    async with adapter(tmp_path, Bucket({f"{DEEP}/x": b"x", f"a/{DEEP}/{'y' * 90}": b"y"})) as handlers:
        deep, flags = await number_of(handlers, DEEP), os.O_WRONLY | os.O_CREAT
        for call in (
            handlers.create(deep, b"n" * 150, 0o644, flags, ASKER),
            handlers.rename(deep, b"x", deep, b"n" * 150, 0, ASKER),
            handlers.rename(ROOT, b"a", ROOT, b"a" * 60, 0, ASKER),
        ):
            assert await errno_of(call) == errno.ENAMETOOLONG
        await handlers.rename(ROOT, b"a", ROOT, b"a" * 20, 0, ASKER)
        await handlers.rename(deep, b"x", deep, b"n" * 100, 0, ASKER)
        assert not await handlers._session.flush()


@trio_test
async def test_what_has_a_name_too_long_for_the_trash_is_removed_all_the_same(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs("removed for good")
    store = Bucket({f"{DEEP}/{'x' * 110}": b"x", f"{DEEP}/short": b"y"})
    async with adapter(tmp_path, store) as handlers:
        deep = await number_of(handlers, DEEP)
        await handlers.unlink(deep, b"x" * 110, ASKER)
        await handlers.unlink(deep, b"short", ASKER)
        assert not await handlers._session.flush()
    assert [key.split("/")[-1] for key in store._objects if key.startswith(".reelfs-trash/")] == ["short"]
    assert not [key for key in store._objects if key.startswith("d") and not key.endswith("/")]


@trio_test
async def test_a_conflict_deep_down_is_kept_under_a_name_that_fits(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs("another version was stored meanwhile")
    store = Bucket({f"{DEEP}/{'x' * 100}.txt": b"old"})
    async with adapter(tmp_path, store) as handlers:
        file = await number_of(handlers, f"{DEEP}/{'x' * 100}.txt")
        opened = await handlers.open(file, os.O_WRONLY | os.O_TRUNC, ASKER)
        store.replace(f"{DEEP}/{'x' * 100}.txt", b"theirs")
        await handlers.write(opened.fh, 0, b"ours")
        await handlers.release(opened.fh)
        await handlers._session.flush()
        assert not await handlers._session.flush()
    kept = {key.split("/")[-1]: body for key, (_, body) in store._objects.items() if key.endswith(".txt")}
    assert sorted(kept.values()) == [b"ours", b"theirs"]
    (ours,) = [name for name, body in kept.items() if body == b"ours"]
    assert ours.startswith("xxxx")
    assert "(conflict " in ours
