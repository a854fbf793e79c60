"""A bucket that has whatever keys it is given, also those no server's file system or framework lets through.

As little of S3 as a reader needs: ListObjectsV2 (prefix, delimiter, `encoding-type=url`), HEAD, ranged GET.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

DATE = "2024-01-01T00:00:00.000Z"


@contextlib.contextmanager
def bare_bucket(objects: Mapping[str, bytes]) -> Iterator[str]:
    """The URL of a server whose one bucket, `bucket`, holds these."""

    class Handler(_Handler):
        stored = objects

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="bare bucket")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    stored: Mapping[str, bytes] = {}
    daemon_threads = True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        key = unquote(path)[len("/bucket/") :]
        if "list-type" in query:
            self._send(200, self._listing(parse_qs(query, keep_blank_values=True)))
        elif key not in self.stored:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._object(self.stored[key])

    do_HEAD = do_GET

    def _object(self, body: bytes) -> None:
        headers = {"ETag": _etag(body), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None:
            self._send(200, body, headers)
            return
        first, last = int(span[1]), min(int(span[2]), len(body) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        self._send(206, body[first : last + 1], headers)

    def _listing(self, query: Mapping[str, list[str]]) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        contents, prefixes = [], dict[str, None]()
        for key, body in self.stored.items():
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
                continue
            contents.append(
                f"<Contents><Key>{_encoded(key)}</Key><LastModified>{DATE}</LastModified>"
                f"<ETag>{escape(_etag(body))}</ETag><Size>{len(body)}</Size></Contents>"
            )
        commons = [f"<CommonPrefixes><Prefix>{_encoded(p)}</Prefix></CommonPrefixes>" for p in prefixes]
        return (
            "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
            f"{''.join(contents)}{''.join(commons)}</ListBucketResult>"
        ).encode()

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _encoded(key: str) -> str:
    return escape(quote(key, safe="/"))


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
