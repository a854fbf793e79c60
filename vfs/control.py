"""The control socket of a mount: JSON lines over a unix socket, for its owner alone.

A client sends `{"command": NAME, "arguments": {...}}` and gets any number of `{"progress": ...}` lines, then
one `{"result": ...}` or `{"error": TEXT, "kind": CLASS}`; it may send the next one then. Who hangs up cancels
what it asked for. Any layer adds commands to the table (`Control.command`) before or while it is served.

Where the socket is, the mount itself says: the attribute `user.reelfs.control` of its root.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio

from vfs.errors import ConfigError, ReelfsError
from vfs.tasks import nursery_without_groups
from vfs.units import visible

log = logging.getLogger("vfs.control")

#: A request of more bytes than this is none of ours.
MAX_REQUEST = 1 << 20
#: Clients at one time; `reelfs top` is one.
MAX_CLIENTS = 32
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Call:
    """One request: its arguments, and a way to say how far it is."""

    arguments: Mapping[str, Any]
    progress: Callable[[Any], Awaitable[None]]

    def text(self, name: str, default: str | None = None) -> str:
        """An argument that is text. Raises ConfigError where it is missing or something else."""
        value = self.arguments.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"the argument {name!r} must be text")
        return value


Handler = Callable[[Call], Awaitable[Any]]


class Control:
    """The table of commands of one mount, and the server of it."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._commands: dict[str, Handler] = {}

    def command(self, name: str, handler: Handler) -> None:
        """Answer `name` by `await handler(call)`: a JSON value, or a ReelfsError. The last one counts."""
        self._commands[name] = handler

    @property
    def commands(self) -> tuple[str, ...]:
        """The names there are."""
        return tuple(sorted(self._commands))

    async def run(self, name: str, call: Call) -> Any:
        """The answer to one request. Raises ReelfsError."""
        handler = self._commands.get(name)
        if handler is None:
            raise ConfigError(f"no such command: {name!r}; there are {', '.join(self.commands)}")
        return await handler(call)

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        """Served at `path` within the block. Where that cannot be it is logged, and the mount goes on."""
        try:
            listener = _listen(path)
        except OSError as error:
            log.warning("no control socket: %s: %s", path, error.strerror or error)
            yield
            return
        async with trio.open_nursery() as nursery:
            self.path = path
            nursery.start_soon(self._accept, listener)
            try:
                yield
            finally:
                self.path = None
                path.unlink(missing_ok=True)
                nursery.cancel_scope.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        free = trio.Semaphore(MAX_CLIENTS)
        with trio.socket.from_stdlib_socket(listener) as listening:
            async with trio.open_nursery() as nursery:
                while True:
                    client, _ = await listening.accept()
                    pid, uid, _ = _PEER.unpack(
                        client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                    )
                    if uid not in (os.geteuid(), 0):
                        log.warning("control: process %d of user %d was turned away", pid, uid)
                        client.close()
                        continue
                    await free.acquire()
                    nursery.start_soon(self._serve, trio.SocketStream(client), free)

    async def _serve(self, stream: trio.SocketStream, free: trio.Semaphore) -> None:
        """All requests of one client. Its faults are its own."""
        try:
            async with stream:
                lines = _Lines(stream)
                while (line := await lines.next()) is not None:
                    await self._answer(stream, lines, line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError) as error:
            log.debug("control: %s", error)
        finally:
            free.release()

    async def _answer(self, stream: trio.SocketStream, lines: _Lines, line: bytes) -> None:
        """One request; cancelled when the client goes away."""
        sending = trio.Lock()

        async def send(value: Mapping[str, Any]) -> None:
            async with sending:
                await stream.send_all(json.dumps(value).encode() + b"\n")

        async def progress(value: Any) -> None:
            await send({"progress": value})

        answer: Mapping[str, Any] | None = None
        async with nursery_without_groups() as nursery:
            nursery.start_soon(lines.watch, nursery.cancel_scope)
            answer = await self._result(line, progress)
            nursery.cancel_scope.cancel()
        if answer is not None:
            await send(answer)

    async def _result(self, line: bytes, progress: Callable[[Any], Awaitable[None]]) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
            name, arguments = str(request["command"]), dict(request.get("arguments") or {})
        except (ValueError, KeyError, TypeError):
            return {"error": "not a request: a line of JSON with a command", "kind": "ConfigError"}
        try:
            return {"result": await self.run(name, Call(arguments, progress))}
        except ReelfsError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            log.error("control: %s failed", visible(name), exc_info=error)
            return {"error": f"internal error: {error!r}", "kind": "ReelfsError"}


class _Lines:
    """The lines a client sends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = bytearray()
        self._ended = False

    async def next(self) -> bytes | None:
        """The next line, or None at the end. Raises ValueError for one without end."""
        while (cut := self._rest.find(b"\n")) < 0:
            if not await self._more():
                return None
        line = bytes(self._rest[:cut])
        del self._rest[: cut + 1]
        return line

    async def watch(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when the client hangs up."""
        while await self._more():
            pass
        scope.cancel()

    async def _more(self) -> bool:
        if self._ended:
            return False
        data = await self._stream.receive_some()
        self._rest += data
        self._ended = not data
        if len(self._rest) > MAX_REQUEST:
            raise ValueError("a request without end")
        return not self._ended


def socket_path(mountpoint: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the socket of a mount is made: below `$RUNTIME_DIRECTORY` (systemd's), `$XDG_RUNTIME_DIR/reelfs`,
    else `~/.local/state/reelfs`."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        folder = Path(given.split(":")[0])
    elif given := environ.get("XDG_RUNTIME_DIR"):
        folder = Path(given) / "reelfs"
    else:
        state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
        folder = Path(state) / "reelfs"
    return folder / f"{sha256(os.fsencode(mountpoint)).hexdigest()[:16]}.sock"


@contextmanager
def address(path: Path) -> Iterator[str]:
    """A name for bind(2) and connect(2), which take 108 bytes at most: through a descriptor of the folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _listen(path: Path) -> socket.socket:
    """A listening socket, 0600 in a folder of our own. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a daemon that was killed: a mountpoint has one mount
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with address(path) as name:
            os.fchmod(listener.fileno(), 0o600)  # what bind makes has this mode from the beginning
            listener.bind(name)
        listener.listen(MAX_CLIENTS)
    except BaseException:
        listener.close()
        raise
    return listener
