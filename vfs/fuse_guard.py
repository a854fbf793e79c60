"""What stands around every FUSE handler: errno for errors, counting, EINTR for who is killed, EROFS.

An exception other than FUSEError that reaches pyfuse3 ends the whole mount, so none may: `answered`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from types import MethodType
from typing import Any, NoReturn, Protocol, TypeVar, cast

import pyfuse3
import trio

from vfs.errors import DeadlineExceeded, ReelfsError
from vfs.fuse_loop import Callers
from vfs.telemetry import Status

log = logging.getLogger("vfs.fuse")

#: Answers about the path or the question, not about trouble: nothing for a log.
ORDINARY = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
        *(
            errno.ENODATA,
            errno.EINVAL,
            errno.EROFS,
            errno.ESTALE,
            errno.EINTR,
            errno.EFBIG,
            errno.EOPNOTSUPP,
            errno.EDQUOT,
        ),
        *(errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EINVAL),
    }
)


class Guarded(Protocol):
    """What the wrappers need of the object whose handlers they wrap."""

    status: Status
    callers: Callers

    def path(self, operation: str, args: Sequence[Any], /) -> str:
        """What the arguments are about, for a log line."""

    def opened_by(self, handle: int, /) -> int:
        """The thread that opened a file, 0 = unknown."""


Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])
Caller = Callable[[Guarded, Sequence[Any]], int]


def answered(operation: Handler) -> Handler:
    """Wrap a handler: only FUSEError comes out of it, every error is counted, trouble is logged."""
    name = operation.__name__

    @wraps(operation)
    async def handler(self: Guarded, *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return await operation(self, *args)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENODATA:  # `ls -l` asks each file for attributes of other systems
                _count(self.status, error.errno)
            raise
        except (Exception, SystemExit) as error:
            number = _failed(self, name, args, error)
            _count(self.status, number)
            raise pyfuse3.FUSEError(number) from None
        finally:
            self.status.observe("fuse_seconds", time.perf_counter() - started, name)

    handler.bare = getattr(operation, "bare", operation)  # type: ignore[attr-defined]
    return cast(Handler, handler)


def inner(handler: Handler) -> Handler:
    """A handler (bound) without what stands around it, for one that has that around itself already."""
    return cast(Handler, MethodType(handler.bare, handler.__self__))  # type: ignore[attr-defined]


def killable(caller: Caller, patience: float = 1.0) -> Callable[[Handler], Handler]:
    """Wrap a handler that may wait long: EINTR once the process that waits for it is being ended, ETIMEDOUT
    when it takes longer than `patience` times the limit of `Callers`.

    caller: gives the process from the arguments of the handler; 0 = unknown.
    """

    def wrap(operation: Handler) -> Handler:
        @wraps(operation)
        async def handler(self: Guarded, *args: Any) -> Any:
            scope = trio.CancelScope()
            waiting = self.callers.add(caller(self, args), patience, scope)
            try:
                with scope:
                    return await operation(self, *args)
            finally:
                self.callers.remove(waiting)
            if waiting.overdue:
                raise DeadlineExceeded("took longer than any operation may")
            raise pyfuse3.FUSEError(errno.EINTR)

        handler.bare = operation  # type: ignore[attr-defined]
        return cast(Handler, handler)

    return wrap


def asker(guarded: Guarded, args: Sequence[Any]) -> int:
    """The caller of a handler whose last argument is pyfuse3's request context."""
    return int(args[-1].pid)


def opener(guarded: Guarded, args: Sequence[Any]) -> int:
    """The caller of `read`, which has no context: most often who opened the file."""
    return guarded.opened_by(args[0])


class Refusals(pyfuse3.Operations):
    """Every operation that would write: EROFS."""

    status: Status

    async def _refuse(self, *args: Any) -> NoReturn:
        _count(self.status, errno.EROFS)
        raise pyfuse3.FUSEError(errno.EROFS)

    refused: Any = _refuse
    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = refused
    write = create = setxattr = removexattr = refused


def only_cause(error: BaseException) -> ReelfsError | None:
    """The error raised on purpose: itself, or the first of a group that holds nothing else."""
    if isinstance(error, ReelfsError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    causes = [only_cause(one) for one in error.exceptions]
    return causes[0] if all(causes) else None


def _failed(guarded: Guarded, operation: str, args: Sequence[Any], error: BaseException) -> int:
    """The errno for what a handler raised; what is not an ordinary answer is logged with its path."""
    known = only_cause(error)
    if known is None:
        log.error("%s %s failed", operation, guarded.path(operation, args), exc_info=error)
        return errno.EIO
    if known.errno not in ORDINARY:
        log.warning("%s %s: %s", operation, guarded.path(operation, args), known)
    return known.errno


def _count(status: Status, number: int) -> None:
    status.count("errors", errno.errorcode.get(number, str(number)))
