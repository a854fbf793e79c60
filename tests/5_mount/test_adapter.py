"""The handlers without a kernel: what the kernel itself would not let through, and every errno."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from vfs import errors
from vfs.errors import ReelfsError
from vfs.found import Found
from vfs.fuse import Adapter, Look, OpensLayouts
from vfs.fuse_guard import ORDINARY, only_cause
from vfs.fuse_loop import Callers
from vfs.inodes import ROOT
from vfs.nodes import Directory, Node
from vfs.telemetry import Status
from vfs.tree import Tree

ASKER = cast(pyfuse3.RequestContext, SimpleNamespace(pid=0))
Expect = Callable[[str], None]


class RaisingTree:
    """Answers every lookup with one error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def lookup(self, parent: Found, name: str) -> Found:
        raise self.error


async def no_entries() -> dict[str, Node | None]:
    return {}


def adapter_with(error: BaseException, status: Status | None = None) -> Adapter:
    root = Found("", Directory(entries=no_entries))
    tree, reader = cast(Tree, RaisingTree(error)), cast(OpensLayouts, None)
    return Adapter(tree, reader, root, Look(0, 0), status or Status(), Callers(limit=30.0))


def errno_of(call: Callable[[], Awaitable[object]]) -> int:
    async def main() -> int:
        with pytest.raises(pyfuse3.FUSEError) as answer:
            await call()
        return answer.value.errno

    return trio.run(main)


def all_errors(base: type[ReelfsError] = ReelfsError) -> Iterator[type[ReelfsError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from all_errors(kind)


@pytest.mark.parametrize("kind", list(all_errors()))
def test_every_error_is_answered_with_its_own_errno(kind: type[ReelfsError], expected_logs: Expect) -> None:
    """One errno map: the classes. Trouble is logged once, with the path; an ordinary answer is not."""
    if kind.errno not in ORDINARY:
        expected_logs("lookup /name: why")
    status = Status()
    adapter = adapter_with(kind("why"), status)
    assert errno_of(lambda: adapter.lookup(ROOT, b"name", ASKER)) == kind.errno
    assert status.value("errors", errno.errorcode[kind.errno]) == 1
    assert len(adapter.callers) == 0


@pytest.mark.parametrize("fault", [RuntimeError("x"), SystemExit(1), MemoryError(), RecursionError()])
def test_every_fault_is_eio(fault: BaseException, expected_logs: Expect) -> None:
    expected_logs("lookup /name failed")
    assert errno_of(lambda: adapter_with(fault).lookup(ROOT, b"name", ASKER)) == errno.EIO


def test_a_group_is_what_it_holds() -> None:
    one, other = errors.Stale("one"), errors.Damaged("other")
    assert only_cause(ExceptionGroup("", [ExceptionGroup("", [one]), other])) is one
    assert only_cause(ExceptionGroup("", [one, ValueError()])) is None
    assert only_cause(ValueError()) is None


WRITING = (
    *("setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link"),
    *("write", "create", "setxattr", "removexattr"),
)


@pytest.mark.parametrize("name", WRITING)
def test_every_handler_that_writes_refuses(name: str) -> None:
    """A3: should the kernel ever ask, in spite of `ro`."""
    adapter: Any = adapter_with(ValueError())
    arguments = len(inspect.signature(getattr(pyfuse3.Operations, name)).parameters) - 1
    assert errno_of(lambda: getattr(adapter, name)(*range(arguments))) == errno.EROFS


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_CREAT, os.O_RDONLY | os.O_APPEND])
def test_opening_to_write_is_refused(flags: int) -> None:
    adapter = adapter_with(ValueError())
    assert errno_of(lambda: adapter.open(ROOT, flags, ASKER)) == errno.EROFS


def test_numbers_that_nobody_knows() -> None:
    adapter = adapter_with(ValueError())
    assert errno_of(lambda: adapter.getattr(12345, ASKER)) == errno.ESTALE
    assert errno_of(lambda: adapter.read(12345, 0, 10)) == errno.EBADF
    assert errno_of(lambda: adapter.readdir(12345, 0, cast(pyfuse3.ReaddirToken, None))) == errno.EBADF
    trio.run(adapter.release, 12345)
    trio.run(adapter.releasedir, 12345)
    trio.run(adapter.forget, [(12345, 3)])


def test_what_does_not_fit_the_kind_of_a_node() -> None:
    adapter = adapter_with(ValueError())
    assert errno_of(lambda: adapter.readlink(ROOT, ASKER)) == errno.EINVAL
    assert errno_of(lambda: adapter.open(ROOT, os.O_RDONLY, ASKER)) == errno.EISDIR


def test_every_handler_pyfuse3_has_is_answered_or_left_to_the_kernel() -> None:
    """What stays ENOSYS: the kernel then does without and does not ask again."""
    theirs = {name for name, f in vars(pyfuse3.Operations).items() if inspect.iscoroutinefunction(f)}
    ours = {name for name in theirs if getattr(Adapter, name) is not getattr(pyfuse3.Operations, name)}
    assert theirs - ours == {"flush", "fsync", "fsyncdir", "poll"}
