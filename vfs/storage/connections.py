"""HTTP connections to one service, kept and shared: reads use them straight, boto3 through `carry`.

What a thread waits for can be given up from another one (`Transfer.abandon`): its connection is shut down, so
that the thread ends at once instead of at its timeout. Proxies and certificates are those botocore would use.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.awsrequest
import urllib3
import urllib3.connection
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from vfs.storage.sockets import FillingSocket

#: Connections that are opened ahead: a video is begun with its head and its sidecar, side by side.
AHEAD = 2
#: Seconds after which idle connections are likely closed by the other side: S3 keeps them for a few.
IDLE_SECONDS = 15.0
#: What goes wrong with a connection, from any of the layers below,
NO_ANSWER = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
#: and while its body is read. ValueError: it was closed.
TROUBLE = (*NO_ANSWER, ValueError)


class Transfer:
    """What a thread asks of a service, which another thread may abandon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: urllib3.connection.HTTPConnection | None = None
        self.abandoned = False

    def on(self, connection: urllib3.connection.HTTPConnection) -> None:
        """The thread uses this connection from here on."""
        with self._lock:
            self._connection = connection
            if self.abandoned:
                _shut(connection)

    def over(self) -> None:
        """The thread is done with it: it may serve another transfer."""
        with self._lock:
            self._connection = None

    def abandon(self) -> None:
        """End the connection, so that a thread that waits for bytes gets an error at once; and begin no more
        requests.
        """
        with self._lock:
            self.abandoned = True
            if self._connection is not None:
                _shut(self._connection)


class _Thread(threading.local):
    """What the thread is asking."""

    transfer: Transfer | None = None


_thread = _Thread()


class _HttpConnection(urllib3.connection.HTTPConnection):
    """Tells the transfer of its thread that it is used: before the request and before the answer, since the
    first may have had to connect.
    """

    def request(self, *arguments: Any, **keywords: Any) -> None:
        """Send a request."""
        if _thread.transfer is not None:
            if _thread.transfer.abandoned:
                raise OSError("given up before it was asked")
            _thread.transfer.on(self)
        super().request(*arguments, **keywords)

    def getresponse(self) -> Any:
        """Wait for the head of the answer."""
        if _thread.transfer is not None:
            _thread.transfer.on(self)
        return super().getresponse()

    def connect(self) -> None:
        """Connect; bodies are received into large buffers, without a call for each segment."""
        super().connect()
        if type(self.sock) is socket.socket:  # that of TLS has its own ways
            self.sock = FillingSocket.of(self.sock)


class _HttpsConnection(_HttpConnection, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection

    def connect(self, count: int) -> None:
        """Have `count` connections open and idle. Raises one of TROUBLE."""
        taken: list[Any] = []
        try:
            for _ in range(count):
                taken.append(connection := self._get_conn())
                if not connection.is_connected:
                    connection.timeout = self.timeout.connect_timeout  # type: ignore[assignment]
                    connection.connect()
        finally:
            for connection in taken:
                self._put_conn(connection)


class _HttpsPool(_HttpPool, urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class Connections:
    """Connections to an endpoint. most: used at one time, and kept. verify: a bundle of certificates, or True
    for botocore's own.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        most: int,
        connect_timeout: float,
        read_timeout: float,
        verify: bool | str = True,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        options: dict[str, Any] = {
            "maxsize": most,
            "timeout": urllib3.Timeout(connect=connect_timeout, read=read_timeout),
        }
        secure = endpoint.startswith("https://")
        if secure:
            bundle = verify if isinstance(verify, str) else get_cert_path(True)
            options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": bundle}
        proxy = get_environ_proxies(endpoint).get("https" if secure else "http")
        manager = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        self._pool: Any = manager.connection_from_url(self.endpoint)
        self._proxied = bool(proxy)
        self._lock = threading.Lock()
        self._used = -math.inf
        # Asked for a path, the pool sends that path; asked for a URL, it would tidy up `..` in it, which
        # may be in a key. A plain-HTTP proxy has to be told the whole URL.
        self._target = self.endpoint if proxy and not secure else ""

    def send(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Any:
        """Send a request, wait for the head of its answer. Raises one of TROUBLE."""
        return self._pool.urlopen(
            method,
            self._target + path,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )

    @contextlib.contextmanager
    def used_by(self, transfer: Transfer) -> Iterator[None]:
        """What this thread sends within the block is that transfer."""
        _thread.transfer = transfer
        try:
            yield
        finally:
            transfer.over()
            _thread.transfer = None

    def carry(self, request: Any, **_: Any) -> Any:
        """Send a request of botocore: a handler of its event `before-send`. None leaves it to botocore."""
        if not request.url.startswith(self.endpoint + "/"):
            return None
        path = request.url.removeprefix(self.endpoint)
        response = self.send(request.method, path, dict(request.headers.items()), request.body)
        answer = botocore.awsrequest.AWSResponse(request.url, response.status, response.headers, response)
        if not request.stream_output:
            try:
                _read = answer.content  # read now, so that the connection is free
            finally:
                if _thread.transfer is not None:
                    _thread.transfer.over()
        return answer

    def connect_ahead(self) -> None:
        """Open connections for reads that may follow: these begin with one round trip, not with two or four.

        Does nothing where some were in use not long ago, or a proxy makes them. What fails is found out by
        the reads.
        """
        now = time.monotonic()
        with self._lock:
            if self._proxied or now - self._used < IDLE_SECONDS:
                return
            self._used = now
        with contextlib.suppress(*TROUBLE):
            self._pool.connect(AHEAD)

    def note_use(self) -> None:
        """A read uses a connection: there will be an idle one soon."""
        self._used = time.monotonic()

    def close(self) -> None:
        """Close idle connections; those in use are closed when they come back."""
        self._pool.close()


def is_through(response: Any) -> bool:
    """All of the body was read: the connection may be used again."""
    source = source_of(response)
    return bool(source.isclosed() if isinstance(source, http.client.HTTPResponse) else source.closed)


def source_of(response: Any) -> Any:
    """Where to read: http.client's own response, which spares the two copies of urllib3's."""
    inner = getattr(response, "_fp", None)
    return inner if isinstance(inner, http.client.HTTPResponse) else response


def _shut(connection: urllib3.connection.HTTPConnection) -> None:
    """Wake a thread that reads from a connection (closing the descriptor alone does not).

    The plain socket's own function: that of a TLS socket would take its state away from under the thread.
    """
    sock = getattr(connection, "sock", None)
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
