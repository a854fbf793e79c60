"""The other end of the control socket: what `reelfs status`, `warm`, `flush`, ... ask a mount with."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vfs import control, errors
from vfs.errors import ConfigError, DeadlineExceeded, ReelfsError
from vfs.mounts import Mounted, absolute, mount_of, mounts

ATTRIBUTE = "user.reelfs.control"
#: Seconds for an answer to what takes no time.
QUICK = 10.0


def the_mount(path: str | None) -> tuple[Mounted, str]:
    """The mount a path lies on, and the path below its root; without a path the only mount there is.

    Raises ConfigError when it is on none, or there are several to choose from.
    """
    if path is not None and (found := mount_of(path)) is not None:
        return found, absolute(path)[len(found.path) :].lstrip("/")
    if path is not None:
        raise ConfigError(f"{path} is not on a reelfs mount")
    ours = [mounted for mounted in mounts() if mounted.ours]
    if len(ours) == 1:
        return ours[0], ""
    if not ours:
        raise ConfigError("nothing is mounted: reelfs mount SOURCE MOUNTPOINT")
    raise ConfigError(f"say which mount: {', '.join(mounted.path for mounted in ours)}")


def ask_mount(
    path: str,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    progress: Callable[[Any], object] | None = None,
) -> Any:
    """The answer of the mount that `path` lies on, to one command. Raises ReelfsError: its own, or why it
    cannot be asked."""
    with Client(the_mount(path)[0]) as client:
        return client.ask(command, arguments, progress=progress, seconds=None)


class Client:
    """A connection to the daemon of one mount."""

    def __init__(self, mounted: Mounted) -> None:
        """Raises ReelfsError: a dead mount, one of another user, one without a socket."""
        self.mounted = mounted
        path = _socket_of(mounted.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with control.address(path) as name:
                self._socket.connect(name)
        except OSError as error:
            self._socket.close()
            raise ReelfsError(f"{mounted.path}: {path}: {error.strerror}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[Any], object] | None = None,
        seconds: float | None = QUICK,
    ) -> Any:
        """The result of a command. progress: told what it says of its progress. seconds: for each line of
        an answer, None = for ever. Raises the error the daemon gives, DeadlineExceeded, ReelfsError."""
        self._socket.settimeout(seconds)
        request = {"command": command, "arguments": dict(arguments or {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while line := self._lines.readline():
                answer = json.loads(line)
                if "result" in answer:
                    return answer["result"]
                if "error" in answer:
                    raise _error(answer)
                if progress is not None:
                    progress(answer.get("progress"))
        except TimeoutError:
            raise DeadlineExceeded(f"{self.mounted.path}: no answer within {seconds:g} s") from None
        except (ConnectionError, ValueError) as error:
            raise ReelfsError(f"{self.mounted.path}: the daemon broke off: {error}") from None
        raise ReelfsError(
            f"{self.mounted.path}: the daemon hung up: it ended, or this user may not command it"
        )


def _error(answer: Mapping[str, Any]) -> ReelfsError:
    kind = getattr(errors, str(answer.get("kind")), ReelfsError)
    known = isinstance(kind, type) and issubclass(kind, ReelfsError)
    return kind(str(answer["error"])) if known else ReelfsError(str(answer["error"]))


def _socket_of(mountpoint: str) -> Path:
    try:
        return Path(os.fsdecode(os.getxattr(mountpoint, ATTRIBUTE)))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            text = f"{mountpoint} is a dead mount: run `reelfs umount {mountpoint}`"
        elif error.errno in (errno.EACCES, errno.EPERM):
            text = f"{mountpoint} is the mount of another user: ask as that user"
        elif error.errno == errno.ENODATA:
            text = f"{mountpoint} has no control socket: its log says why"
        else:
            text = f"{mountpoint}: {error.strerror}"
        raise ReelfsError(text) from None
