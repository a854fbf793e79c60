"""An HTTP proxy that stands before a real store server: round trip time, bandwidth, faults, counts.

In a test (the repository's root is on sys.path there, see tests/conftest.py)::

    from tests.faults.proxy import Proxy, Rule

    with Proxy("http://127.0.0.1:9000", delay=0.04, bandwidth=25e6) as proxy:
        proxy.fault(Rule("status", kind="get", key="*.mp4", nth=(1, 2), status=503, retry_after="1"))
        ... use proxy.url as the endpoint ...
        assert proxy.counts().requests == {"get": 3}

For benchmarks it runs as a process of its own, `tests.faults.process.ProxyProcess`, with the same methods.

delay: seconds between the last byte of a request's head and the first of its answer, for each request by
itself, on top of what the server takes; handshakes: so many round trips (1 = TCP), counted from when it was
opened, before a connection passes its first request. bandwidth: bytes a second of bodies, shared by all
connections. Bodies go from socket to socket inside the kernel; only heads are looked at. The signature of a
request stays valid, since its Host is not changed.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.faults.heads import Head, asked_range, one_off, shifted
from tests.faults.pipes import Bandwidth, Closed, Pipe, Stream
from tests.faults.rules import FAULTS, SHIFT, Counts, Ledger, Logged, Rule, Rules, kind_of, path_of
from tests.ports import free_port

__all__ = ["FAULTS", "Counts", "Logged", "Proxy", "Rule"]

_CODES = {503: "SlowDown", 429: "TooManyRequests", 500: "InternalError", 403: "AccessDenied"}
#: SO_LINGER with zero seconds: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)


class _Broken(Exception):
    """A fault has ended this connection."""


class Proxy:
    """See the module. answers_continue: False = silent on `Expect: 100-continue`, as R2 is."""

    def __init__(
        self,
        target: str,
        *,
        delay: float = 0.0,
        bandwidth: float | None = None,
        handshakes: int = 0,
        seed: int = 0,
        port: int = 0,
        answers_continue: bool = True,
    ) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.delay = delay
        self.handshakes = handshakes
        self.answers_continue = answers_continue
        self.line = Bandwidth(bandwidth)
        self.rules = Rules(seed)
        self.ledger = Ledger()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._release_reader, self._release_writer = socket.socketpair()
        self._retired: list[socket.socket] = []
        self._port = port or free_port()
        self.up()

    # -- the interface ----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._port}"

    def fault(self, rule: Rule) -> None:
        """One more rule."""
        self.rules.add(rule)

    def clear(self) -> None:
        """No faults any more (those under way go on); hanging requests are let go."""
        self.rules.clear()
        self.release()

    def shape(self, *, delay: float = 0.0, bandwidth: float | None = None) -> None:
        """Another round trip time and bandwidth from now on."""
        self.delay, self.line.rate = delay, bandwidth

    def counts(self) -> Counts:
        """Since the start or `reset`."""
        return self.ledger.counts()

    def log(self) -> list[Logged]:
        """Every request since the start or `reset`."""
        return self.ledger.log()

    def reset(self) -> None:
        """Count from zero."""
        self.ledger.reset()

    @property
    def clients(self) -> int:
        """Connections of clients that are open."""
        with self._lock:
            return len(self._clients)

    def release(self) -> None:
        """Let every hanging request go: its connection is closed."""
        with self._lock:
            reader, writer = self._release_reader, self._release_writer
            self._release_reader, self._release_writer = socket.socketpair()
            self._retired.append(reader)  # threads still wait for it: closed at the end
        writer.close()

    def down(self) -> None:
        """The server is gone: connections are reset, new ones refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            held = list(self._sockets)
        for sock in held:
            _linger(sock)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it

    def up(self) -> None:
        """The server is there (again), on the same port."""
        if self._listener is not None:
            return
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=512)
        self._spawn(self._accept, self._listener)

    def close(self) -> None:
        """End all connections and threads."""
        self.down()
        self.release()
        while True:
            with self._lock:
                threads = [t for t in self._threads if t is not threading.current_thread()]
            if not threads:
                break
            for thread in threads:
                thread.join(10)
                if thread.is_alive():
                    raise RuntimeError("a connection of the proxy does not end")
        for sock in (*self._retired, self._release_reader, self._release_writer):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- used by connections ----------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        """A connection to the server, ended by `down` and `close`."""
        sock = socket.create_connection(self.target, timeout=10)
        sock.settimeout(None)
        self.hold(sock)
        return sock

    def hold(self, sock: socket.socket) -> None:
        """End this socket with the proxy."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.add(sock)

    def drop(self, sock: socket.socket) -> None:
        """Close a socket."""
        with self._lock:
            self._sockets.discard(sock)
            self._clients.discard(sock)
        sock.close()

    def hang(self, client: socket.socket) -> None:
        """Return when hanging requests are let go, or the client has gone."""
        with self._lock:
            reader = self._release_reader
        with contextlib.suppress(OSError, ValueError):
            select.select([reader, client], [], [])

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.ledger.connected()
            self.hold(sock)
            with self._lock:
                self._clients.add(sock)
            self._spawn(_Connection(self, sock).run)
            if self._listener is not listener:  # taken down at this moment
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return

    def _spawn(self, function: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                function(*arguments)
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, daemon=True, name="proxy")
        with self._lock:
            self._threads.add(thread)
        thread.start()


def _linger(sock: socket.socket) -> None:
    """Closing this connection will send a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class _Connection:
    """One client, in a thread of its own, with one connection to the server."""

    def __init__(self, proxy: Proxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._client = Stream(sock)
        self._server: Stream | None = None
        self._entry = Logged("", "", "")
        self._open = time.monotonic() + proxy.delay * proxy.handshakes
        self._down = Pipe(proxy.line, self._count)
        self._up = Pipe(Bandwidth(), self._count)

    def run(self) -> None:
        """Until one of the two has enough."""
        try:
            while (raw := self._client.head()) is not None:
                if not self._request(Head.parse(raw)):
                    break
        except (OSError, Closed, _Broken):
            pass  # the client sees a connection that ends, which is what happened
        finally:
            self._down.close()
            self._up.close()
            self._proxy.drop(self._client.sock)
            if self._server is not None:
                self._proxy.drop(self._server.sock)

    def _count(self, moved: int) -> None:
        self._proxy.ledger.passed(self._entry, moved)

    def _request(self, head: Head) -> bool:
        """One request and its answer; True when another may follow."""
        kind, path = kind_of(head.method, head.target), path_of(head.target)
        rule = self._proxy.rules.choose(kind, path)
        self._entry = Logged(kind, path, head.get("range"), rule.fault if rule else "")
        self._proxy.ledger.asked(self._entry)
        pause = self._proxy.delay + max(0.0, self._open - time.monotonic())
        if pause > 0:
            time.sleep(pause)
        if rule is not None and self._before(rule, head):
            return True
        answer = self._forwarded(head, rule)
        self._entry.status = answer.status
        return self._answer(head, answer, rule)

    def _before(self, rule: Rule, head: Head) -> bool:
        """The part of a fault before the server is asked; True when that was the answer."""
        if rule.fault == "status":
            self._swallow(head)
            self._entry.status = rule.status
            self._refuse(rule, head)
            return True
        if rule.fault == "reset" and rule.at is None:
            _linger(self._client.sock)
            raise _Broken
        if rule.fault == "hang" and rule.at is None:
            self._proxy.hang(self._client.sock)
            raise _Broken
        if rule.fault == "delay":
            time.sleep(rule.seconds)
        elif rule.fault == "whole":
            head.change({"Range": None})
        return False

    def _refuse(self, rule: Rule, head: Head) -> None:
        code = rule.code or _CODES.get(rule.status, "Error")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
        answer = Head(f"HTTP/1.1 {rule.status} Made up", [("Content-Type", "application/xml")])
        answer.change({"Content-Length": str(len(body)), "Retry-After": rule.retry_after, **rule.headers})
        self._client.sock.sendall(answer.encode() + (b"" if head.method == "HEAD" else body))

    # -- to the server ----------------------------------------------------------------------------------

    def _forwarded(self, head: Head, rule: Rule | None) -> Head:
        """Send the request on; the head of the answer, with the heads of faults already changed."""
        asked = head.get("range")
        if rule is not None and rule.fault in ("shift", "shift-silently"):
            head.change({"Range": shifted(asked, SHIFT)})
        if head.get("expect"):
            head.change({"Expect": None})
            if self._proxy.answers_continue:
                self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer = self._exchanged(head)
        if rule is not None:
            _spoil(answer, rule, asked)
        return answer

    def _exchanged(self, head: Head) -> Head:
        """The answer's head; once more on a new connection when the kept one had been closed meanwhile."""
        fresh = self._server is None
        if self._server is None:
            self._server = Stream(self._proxy.connect())
        try:
            self._server.sock.sendall(head.encode())
            self._send_body(head)
            while (raw := self._server.head()) is not None:
                answer = Head.parse(raw)
                if answer.status >= 200:
                    return answer
        except OSError:
            if fresh:
                raise
        self._proxy.drop(self._server.sock)
        self._server = None
        if fresh or head.method not in ("GET", "HEAD"):
            raise Closed("the server closed the connection")
        return self._exchanged(head)

    def _send_body(self, head: Head) -> None:
        assert self._server is not None
        if head.is_chunked:
            self._chunks(self._client, self._server.sock, self._up)
        elif head.length:
            self._up.move(self._client, self._server.sock, head.length)

    def _swallow(self, head: Head) -> None:
        """Read the body of a request that the server is not to see."""
        left = head.length or 0
        if left and head.get("expect") and self._proxy.answers_continue:
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while left:
            left -= len(self._client.take(left))

    # -- to the client ----------------------------------------------------------------------------------

    def _answer(self, head: Head, answer: Head, rule: Rule | None) -> bool:
        assert self._server is not None
        client = self._client.sock
        client.sendall(answer.encode())
        if head.method == "HEAD" or answer.status in (204, 304):
            return not (head.closes or answer.closes)
        length = answer.length
        if rule is not None and rule.fault in ("truncate", "reset", "hang", "flip"):
            length = self._spoiled_body(rule, length or 0)
        if answer.is_chunked:
            self._chunks(self._server, client, self._down)
        else:
            self._down.move(self._server, client, length)
        return length is not None and not (head.closes or answer.closes)

    def _spoiled_body(self, rule: Rule, length: int) -> int:
        """The body up to where the fault is; what is left to send."""
        assert self._server is not None
        client = self._client.sock
        at = min(length // 2 if rule.at is None else rule.at, length)
        self._down.move(self._server, client, at)
        if rule.fault == "flip":
            if at == length:
                return 0
            byte = self._server.take(1)[0]
            self._count(1)
            client.sendall(bytes([byte ^ 1]))
            return length - at - 1
        if rule.fault == "hang":
            self._proxy.hang(client)
        elif rule.fault == "reset":
            _linger(client)
        raise _Broken

    def _chunks(self, source: Stream, target: socket.socket, pipe: Pipe) -> None:
        """A body in chunks, as it comes, through its trailer."""
        while True:
            line = source.line()
            target.sendall(line)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            pipe.move(source, target, size + 2)
        while True:
            line = source.line()
            target.sendall(line)
            if line == b"\r\n":
                return


def _spoil(answer: Head, rule: Rule, asked: str) -> None:
    """The part of a fault that is in the head of the answer."""
    if rule.fault == "range":
        answer.change({"Content-Range": one_off(answer.get("content-range"))})
    elif rule.fault == "shift-silently":
        answer.change({"Content-Range": asked_range(asked, answer.get("content-range"))})
    elif rule.fault == "etag":
        answer.change({"ETag": '"0123456789abcdef0123456789abcdef"'})
    elif rule.fault == "header":
        answer.change(rule.headers)
        if rule.status != 503:
            answer.rename(f"HTTP/1.1 {rule.status} Made up")
