"""The store of processes that are killed: it lives on in the test, and sees every object.

A request that has arrived is done, whether or not somebody is left to hear the answer, as by a server.
"""

from __future__ import annotations

import copy
import pickle
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from vfs import errors
from vfs.storage.memory import MemoryStore

SECONDS = 20.0


async def receive(stream: trio.abc.ReceiveStream) -> Any:
    """One message; None at the end."""
    size = await _exactly(stream, 4)
    return None if size is None else pickle.loads(await _exactly(stream, struct.unpack(">I", size)[0]) or b"")


async def _exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            return None
        data += more
    return data


async def send(stream: trio.abc.SendStream, message: Any) -> None:
    """One message."""
    data = pickle.dumps(message)
    await stream.send_all(struct.pack(">I", len(data)) + data)


class ParentStore(MemoryStore):
    """versions: all bodies that were ever under a key. done: what the process said it has finished."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.socket = socket
        self.versions: list[tuple[str, bytes]] = []
        self.done: list[int] = []
        self.points: list[str] = []
        self._ready, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._scope = trio.CancelScope()

    def __enter__(self) -> ParentStore:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(SECONDS)
        self.socket.unlink(missing_ok=True)

    def replace(self, key: str, body: bytes) -> Any:
        self.versions.append((key, bytes(body)))
        return super().replace(key, body)

    def bodies(self) -> dict[str, bytes]:
        return {key: bytes(body) for key, (_, body) in self._objects.items()}

    def clear(self) -> None:
        for kept in (self._objects, self._metadata, self._uploads, self.versions, self.done, self.points):
            kept.clear()

    def state(self) -> tuple[Any, ...]:
        """All that is in it, to be put back by `restore`."""
        return copy.deepcopy((self._objects, self._metadata, self._uploads, self.versions, self.done))

    def restore(self, state: tuple[Any, ...]) -> None:
        """As it was."""
        objects, metadata, uploads, versions, done = copy.deepcopy(state)
        self._objects, self._metadata, self._uploads = objects, metadata, uploads
        self.versions, self.done = versions, done

    def _run(self) -> None:
        trio.run(self._serve)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with self._scope, listener:
            await listener.bind(str(self.socket))
            listener.listen(64)
            self._ready.set()
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listener.accept()
                    nursery.start_soon(self._answer, trio.SocketStream(connection))

    async def _answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            message = await receive(stream)
            if message is None:
                return
            name, args, told = message
            try:
                answer: Any = (None, await self._work(name, args, told))
            except errors.ReelfsError as error:
                answer = (type(error).__name__, str(error))
            try:
                await send(stream, answer)
            except trio.BrokenResourceError:
                return  # it was killed

    async def _work(self, name: str, args: Any, told: Any) -> Any:
        if name == "did":
            return self.done.append(args[0])
        if name == "at":
            return self.points.append(args[0])
        if name == "another":
            self.replace(*args)
            return None
        work: Callable[..., Any] = getattr(MemoryStore, name)
        return await work(self, *args, **told)
