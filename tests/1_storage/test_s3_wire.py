"""What goes over the wire, byte for byte, and what answers nobody's server gives on purpose mean."""

from __future__ import annotations

import email.utils
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from trio.testing import trio_test

from tests.faults.heads import Head
from tests.servers import environ_for
from vfs.errors import BadBody, Denied, StoreError
from vfs.spans import StoredObject
from vfs.storage.access import Access, Target, connect
from vfs.storage.answers import check
from vfs.storage.r2 import S3Store
from vfs.storage.signing import Answer

STORED = StoredObject("games/a b.mp4", 1000, '"abc-2"')
DATED = [("ETag", '"abc-2"'), ("Last-Modified", "Sat, 21 Nov 2026 02:59:16 GMT")]
EMPTY_LIST = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


class Wire:
    """A server of one answer for each method; it keeps the heads and bodies of requests."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []
        self.get = Head("HTTP/1.1 206 Partial Content", [*DATED, ("Content-Range", "bytes 10-14/1000")])
        self.get_body = b"12345"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            # Each by itself: a store opens connections ahead, on which it asks nothing yet.
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as incoming:
            lines = []
            while (line := incoming.readline()) not in (b"", b"\r\n"):
                lines.append(line)
            if not lines:
                return
            head = Head.parse(b"".join(lines) + b"\r\n")
            self.heads.append(head)
            self.bodies.append(incoming.read(head.length or 0))
            sock.sendall(self._answer(head))

    def _answer(self, head: Head) -> bytes:
        if head.method == "GET" and "list-type" not in head.target:
            answer, body = Head(self.get.first, list(self.get.headers)), self.get_body
        else:
            answer = Head("HTTP/1.1 200 OK", list(DATED))
            body = EMPTY_LIST if head.method == "GET" else b""
        answer.change({"Connection": "close", "Content-Length": str(len(body))})
        return answer.encode() + body


@pytest.fixture
def wire() -> Iterator[Wire]:
    running = Wire()
    yield running
    running.close()


@contextmanager
def reached(wire: Wire) -> Iterator[Access]:
    access = connect(Target("s3", "bucket", "", 10.0, 4, environ_for(wire.url)))
    yield access
    access.close()


@trio_test
async def test_a_read_is_one_plain_conditional_range(wire: Wire) -> None:
    """Pinned and ranged; neither is signed, so that one signature serves every read of a key."""
    with reached(wire) as access:
        assert bytes(await S3Store(access).read(STORED, 10, 5)) == b"12345"
    (head,) = wire.heads
    assert head.first == "GET /bucket/games/a%20b.mp4 HTTP/1.1"
    assert head.get("range") == "bytes=10-14"
    assert head.get("if-match") == '"abc-2"'
    assert head.get("accept-encoding") == "identity"
    signed = head.get("authorization").partition("SignedHeaders=")[2].partition(",")[0]
    assert signed == "host;x-amz-content-sha256;x-amz-date"
    for name in ("x-amz-checksum-mode", "expect", "content-type", "transfer-encoding"):
        assert head.get(name, "absent") == "absent"


@trio_test
async def test_head_and_list_ask_for_no_checksums(wire: Wire) -> None:
    with reached(wire) as access:
        await S3Store(access).list("games/")
        await S3Store(access).head("games/a b.mp4")
    listing, head = wire.heads
    assert listing.target.startswith("/bucket?list-type=2")
    for part in ("prefix=games%2F", "delimiter=%2F", "max-keys=1000", "encoding-type=url"):
        assert part in listing.target
    assert head.first == "HEAD /bucket/games/a%20b.mp4 HTTP/1.1"
    for sent in (listing, head):
        assert sent.get("x-amz-checksum-mode", "absent") == "absent"


def test_uploads_are_plain_bodies(wire: Wire) -> None:
    """No `Expect` (R2 is silent on it: a second for each PUT), no trailer, no chunks, no checksum header."""
    with reached(wire) as access:
        for body in (b"", b"bytes", io.BytesIO(b"a file"), io.BytesIO()):
            access.client.put_object(Bucket="bucket", Key="k", Body=body)
        for part in (b"part", io.BytesIO(b"a part")):
            access.client.upload_part(Bucket="bucket", Key="k", UploadId="u", PartNumber=1, Body=part)
        access.client.put_object(Bucket="bucket", Key="k", Body=b"x", IfMatch='"abc-2"')
        access.client.put_object(Bucket="bucket", Key="k", Body=b"x", IfNoneMatch="*")
    assert wire.bodies == [b"", b"bytes", b"a file", b"", b"part", b"a part", b"x", b"x"]
    for head, body in zip(wire.heads, wire.bodies, strict=True):
        assert head.get("content-length") == str(len(body))
        names = {name.lower() for name, _ in head.headers}
        assert not names & {"expect", "transfer-encoding", "content-encoding", "x-amz-trailer"}
        assert not [name for name in names if name.startswith("x-amz-checksum")]
    assert wire.heads[-2].get("if-match") == '"abc-2"'
    assert wire.heads[-1].get("if-none-match") == "*"


@trio_test
async def test_more_bytes_than_the_head_promises_are_not_read(wire: Wire) -> None:
    wire.get_body = b"123456"
    with reached(wire) as access, pytest.raises(BadBody, match="more bytes came"):
        await S3Store(access).read(STORED, 10, 5)


def refused(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@pytest.mark.parametrize(("minutes", "word"), [(40, "slow"), (-40, "fast")])
def test_a_wrong_clock_is_named_as_the_reason(minutes: int, word: str) -> None:
    """Signatures carry the time; no retry helps, and no other key."""
    date = email.utils.formatdate(time.time() + 60 * minutes, usegmt=True)
    body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    with pytest.raises(Denied, match=f"RequestTimeTooSkewed.*40 minutes {word}, set it"):
        check(refused(403, body, date=date), STORED, 0, 5)
    right = email.utils.formatdate(usegmt=True)
    for given in (right, "yesterday"):
        with pytest.raises(Denied, match="check keys, scope and clock"):
            check(refused(403, date=given), STORED, 0, 5)


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_bucket_of_another_region_says_which(status: int) -> None:
    with pytest.raises(StoreError, match="set AWS_REGION=eu-west-1"):
        check(refused(status, x_amz_bucket_region="eu-west-1"), STORED, 0, 5)


def test_a_bucket_that_went_away_is_not_a_missing_object() -> None:
    with pytest.raises(StoreError, match="no such bucket"):
        check(refused(404, b"<Error><Code>NoSuchBucket</Code></Error>"), STORED, 0, 5)


def test_an_unpacked_object_of_another_length_is_refused_for_good() -> None:
    unpacked = Answer(
        206, {"content-range": "bytes 0-4/5000", "content-encoding": "gzip", "etag": '"abc-2"'}, b"12345"
    )
    with pytest.raises(StoreError, match="Content-Encoding gzip") as caught:
        check(unpacked, STORED, 0, 5)
    assert not isinstance(caught.value, BadBody)


@pytest.mark.parametrize("scheme", ["s3", "r2"])
def test_r2_is_signed_for_its_own_region(scheme: str) -> None:
    """Whatever AWS_REGION says, and by whichever scheme it is called."""
    environ = environ_for("") | {"AWS_ENDPOINT_URL": "", "R2_ACCOUNT_ID": "abc", "AWS_REGION": "eu-west-1"}
    access = connect(Target(scheme, "bucket", "", 10.0, 4, environ))
    assert access.client.meta.region_name == "auto"
    access.close()


@pytest.mark.parametrize(
    ("scheme", "environ", "url"),
    [
        ("s3", {"AWS_REGION": "us-east-1"}, "https://s3.amazonaws.com"),
        ("s3", {"AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
        ("r2", {"R2_ACCOUNT_ID": "abc"}, "https://abc.r2.cloudflarestorage.com"),
        ("s3", {"AWS_ENDPOINT_URL": "http://[::1]:9000"}, "http://[::1]:9000"),
    ],
)
def test_all_calls_go_by_connections_that_can_be_ended(
    scheme: str, environ: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3's too, wherever the endpoint is: none is left to its own connections."""
    keys = {"AWS_ACCESS_KEY_ID": "identity", "AWS_SECRET_ACCESS_KEY": "secret"}
    access = connect(Target(scheme, "bucket", "", 10.0, 4, environ | keys))
    sent: list[tuple[str, str]] = []

    def send(method: str, path: str, *rest: object) -> None:
        sent.append((method, path))
        raise OSError("enough")

    monkeypatch.setattr(access.connections, "send", send)
    with pytest.raises(OSError, match="enough"):
        access.client.head_object(Bucket="bucket", Key="a b")
    with pytest.raises(OSError, match="enough"):
        access.client.put_object(Bucket="bucket", Key="a b", Body=b"x")
    assert access.connections.endpoint == url
    assert sent == [("HEAD", "/bucket/a%20b"), ("PUT", "/bucket/a%20b")]
    access.close()


def test_a_bucket_of_aws_is_asked_at_the_host_of_its_region() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "identity", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    access = connect(Target("s3", "bucket", "", 10.0, 4, keys))
    moved = access.moved("ap-southeast-2")
    assert (moved.region, moved.connections.endpoint) == (
        "ap-southeast-2",
        "https://s3.ap-southeast-2.amazonaws.com",
    )
    renewed = connect(moved.target)
    assert renewed.region == "ap-southeast-2"  # also with the credentials that follow
    for made in (access, moved, renewed):
        made.close()
