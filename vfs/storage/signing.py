"""Ranged GETs over HTTP without botocore's cost per request.

botocore takes more CPU to build and sign one small GET than the transfer takes (see `tests/bench`,
`store-get`). The signature of SigV4 covers the headers that are named in it, and neither Range nor If-Match
has to be: so one signature per key is made, used for some minutes, and the rest is plain HTTP over pooled
connections, read straight into one preallocated buffer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import urllib3
from botocore.utils import get_environ_proxies

#: A signed header is valid for 15 minutes by the server's clock; well below, for clocks that differ.
SIGNATURE_SECONDS = 240.0
#: Keys whose signature is remembered.
MAX_SIGNATURES = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (lower case names) and body; the bytes of the object only in a success."""

    status: int
    headers: Mapping[str, str]
    body: bytearray


class Transfer:
    """One GET under way in a thread, which another may abandon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._response: Any = None
        self._abandoned = False

    def began(self, response: Any) -> None:
        """The thread has a response from here on."""
        with self._lock:
            self._response = response
            if self._abandoned:
                _close(response)

    def abandon(self) -> None:
        """Close the connection, so that a thread that waits for bytes gets an error at once."""
        with self._lock:
            self._abandoned = True
            if self._response is not None:
                _close(self._response)


class SignedGets:
    """GETs of keys of one bucket. credentials: botocore's, refreshed by themselves where they expire."""

    def __init__(
        self,
        *,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: Any,
        connections: int,
        connect_timeout: float,
        read_timeout: float,
        verify: bool | str = True,
    ) -> None:
        self._base = f"{endpoint.rstrip('/')}/{quote(bucket)}/"
        self._region = region
        self._credentials = credentials
        self._signed: OrderedDict[str, tuple[float, str, dict[str, str]]] = OrderedDict()
        options: dict[str, Any] = {
            "maxsize": connections,
            "retries": False,
            "timeout": urllib3.Timeout(connect=connect_timeout, read=read_timeout),
        }
        if endpoint.startswith("https://"):
            options |= {"ca_certs": verify} if isinstance(verify, str) else {}
            options["cert_reqs"] = "CERT_REQUIRED"
        proxy = get_environ_proxies(endpoint).get(endpoint.partition(":")[0])
        self._pool: urllib3.PoolManager = (
            urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        )

    def get(self, key: str, offset: int, length: int, etag: str, transfer: Transfer) -> Answer:
        """One ranged GET, conditional on the etag. Raises urllib3's HTTPError, OSError."""
        url, signed = self._headers(key)
        headers = signed | {
            "Range": f"bytes={offset}-{offset + length - 1}",
            "If-Match": etag,
            # Objects stored with Content-Encoding would else be sent unpacked, with other bytes and sizes.
            "Accept-Encoding": "identity",
        }
        response = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
        transfer.began(response)
        names = {name.lower(): value for name, value in response.headers.items()}
        try:
            if response.status not in (200, 206):
                body = bytearray(response.read(4096))
                response.drain_conn()
                return Answer(response.status, names, body)
            if (
                response.status == 200
                and "content-range" not in names
                and names.get("content-length") != str(length)
            ):
                response.close()
                return Answer(200, names, bytearray())
            return Answer(response.status, names, _read_into(response, length))
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()

    def forget(self, key: str) -> None:
        """Sign anew next time (the server refused)."""
        self._signed.pop(key, None)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _headers(self, key: str) -> tuple[str, dict[str, str]]:
        """The URL of a key and headers that prove who asks."""
        now = time.monotonic()
        known = self._signed.get(key)
        if known is not None and now - known[0] < SIGNATURE_SECONDS:
            return known[1], known[2]
        url = self._base + quote(key, safe="/~", encoding="utf-8", errors="surrogateescape")
        request = botocore.awsrequest.AWSRequest(method="GET", url=url)
        frozen = self._credentials.get_frozen_credentials()
        botocore.auth.S3SigV4Auth(frozen, "s3", self._region).add_auth(request)
        headers = dict(request.headers.items())
        self._signed[key] = (now, url, headers)
        while len(self._signed) > MAX_SIGNATURES:
            self._signed.popitem(last=False)
        return url, headers


def _read_into(response: Any, length: int) -> bytearray:
    """The body, into one buffer: short when the connection ended early, never longer than asked for.

    http.client's own readinto saves the two copies of urllib3's.
    """
    body = bytearray(length)
    view, done = memoryview(body), 0
    source = response._fp if hasattr(getattr(response, "_fp", None), "readinto") else response
    while done < length:
        count = source.readinto(view[done:])
        if not count:
            break
        done += count
    view.release()
    if done < length:
        response.close()
        del body[done:]
    return body


def _close(response: Any) -> None:
    """Shut the socket down, which wakes a thread that reads from it (closing alone does not)."""
    import socket

    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
