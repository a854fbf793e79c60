"""The test server behaves as R2 does, fails as it is told to, and keeps what it has stored."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest
import urllib3

from tests.r2.faults import Fault
from tests.r2.wire import http_date
from tests.servers import ACCESS_KEY, R2, SECRET_KEY, _without_expect, r2_server

LEAST = 5 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as server:
        server.fill("bucket", {})
        yield server


@pytest.fixture
def server(running: R2) -> Iterator[R2]:
    yield running
    running.heal()
    running.option(rate=False)
    running.forget()


@pytest.fixture
def client(server: R2) -> Iterator[Any]:
    made = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="auto",
        config=botocore.config.Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 1},
            read_timeout=10,
        ),
    )
    for operation in ("PutObject", "UploadPart"):
        made.meta.events.register(f"before-send.s3.{operation}", _without_expect)
    yield made
    made.close()


def refused(call: Any, /, **parameters: Any) -> tuple[int, str]:
    """Status and code of what a call is refused with."""
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        call(Bucket="bucket", **parameters)
    answer = raised.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def put(client: Any, key: str, body: bytes = b"x", **conditions: str) -> str:
    return str(client.put_object(Bucket="bucket", Key=key, Body=body, **conditions)["ETag"])


def body_of(client: Any, key: str) -> bytes:
    body: bytes = client.get_object(Bucket="bucket", Key=key)["Body"].read()
    return body


def test_writes_are_conditional_but_deletes_are_not(client: Any) -> None:
    first = put(client, "a", b"first", IfNoneMatch="*")
    failed = (412, "PreconditionFailed")
    assert refused(client.put_object, Key="a", Body=b"x", IfNoneMatch="*") == failed
    second = put(client, "a", b"second", IfMatch=first)
    assert refused(client.put_object, Key="a", Body=b"x", IfMatch=first) == failed
    assert refused(client.put_object, Key="none", Body=b"x", IfMatch=first) == failed
    assert refused(client.get_object, Key="a", IfMatch=first) == failed
    assert body_of(client, "a") == b"second"
    assert put(client, "a", b"third", IfMatch=f"W/{second}")
    client.delete_object(Bucket="bucket", Key="a", IfMatch=first)
    assert refused(client.get_object, Key="a") == (404, "NoSuchKey")
    client.delete_object(Bucket="bucket", Key="a")


def test_the_target_of_a_copy_is_conditional_by_its_own_headers(client: Any) -> None:
    source = {"Bucket": "bucket", "Key": "from ü"}
    etag = put(client, "from ü", b"source", ContentType="video/mp4")
    put(client, "to", b"target")
    # Those of S3 mean nothing.
    client.copy_object(Bucket="bucket", Key="to", CopySource=source, IfNoneMatch="*")
    assert body_of(client, "to") == b"source"
    given: dict[str, str] = {}
    client.meta.events.register(
        "before-call.s3.CopyObject", lambda params, **_: params["headers"].update(given) or None
    )
    given["cf-copy-destination-if-none-match"] = "*"
    assert refused(client.copy_object, Key="to", CopySource=source) == (412, "PreconditionFailed")
    given.clear()
    other = '"00000000000000000000000000000000"'
    assert refused(client.copy_object, Key="to", CopySource=source, CopySourceIfMatch=other)[0] == 412
    assert refused(client.copy_object, Key="from ü", CopySource=source)[0] == 400  # changes nothing
    client.copy_object(
        *(),
        **{"Bucket": "bucket", "Key": "from ü", "CopySource": source, "CopySourceIfMatch": etag},
        MetadataDirective="REPLACE",
        Metadata={"mtime": "5"},
    )
    found = client.head_object(Bucket="bucket", Key="from ü")
    assert (found["Metadata"], found["ContentLength"]) == ({"mtime": "5"}, 6)


def started(client: Any, key: str, *bodies: bytes) -> dict[str, Any]:
    """An upload with these parts: parameters of its completion."""
    name = client.create_multipart_upload(Bucket="bucket", Key=key)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        answer = client.upload_part(Bucket="bucket", Key=key, UploadId=name, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    return {"Key": key, "UploadId": name, "MultipartUpload": {"Parts": parts}}


def test_parts_have_one_size_which_completing_checks(client: Any) -> None:
    one, more, tail = bytes(LEAST), bytes(LEAST + 1), b"end"
    for bodies in ((one, more, tail), (one, more)):
        upload = started(client, "p", *bodies)
        assert refused(client.complete_multipart_upload, **upload) == (400, "InvalidPart")
        # The parts are still there.
        assert len(client.list_parts(Bucket="bucket", Key="p", UploadId=upload["UploadId"])["Parts"])
        client.abort_multipart_upload(Bucket="bucket", Key="p", UploadId=upload["UploadId"])
    assert (
        refused(client.complete_multipart_upload, **started(client, "p", tail, tail))[1] == "EntityTooSmall"
    )
    upload = started(client, "p", one, one, tail)
    upload["MultipartUpload"]["Parts"].reverse()  # sorted by number
    answer = client.complete_multipart_upload(Bucket="bucket", **upload)
    assert answer["ETag"].endswith('-3"')
    assert body_of(client, "p") == one + one + tail
    ranged = client.get_object(Bucket="bucket", Key="p", Range=f"bytes={LEAST - 3}-{2 * LEAST + 1}")
    assert ranged["Body"].read() == (one + one + tail)[LEAST - 3 : 2 * LEAST + 2]
    assert refused(client.complete_multipart_upload, **upload) == (404, "NoSuchUpload")


def test_a_completion_whose_condition_fails_loses_the_parts(client: Any) -> None:
    put(client, "c", b"there")
    upload = started(client, "c", b"body")
    assert refused(client.complete_multipart_upload, **upload, IfNoneMatch="*")[0] == 412
    assert refused(client.complete_multipart_upload, **upload) == (404, "NoSuchUpload")
    assert body_of(client, "c") == b"there"
    assert "c" not in [up["Key"] for up in client.list_multipart_uploads(Bucket="bucket").get("Uploads", ())]


def test_parts_that_are_copied_ignore_conditions(client: Any) -> None:
    put(client, "source", bytes(range(256)) * 10)
    name = client.create_multipart_upload(Bucket="bucket", Key="copied")["UploadId"]
    part = client.upload_part_copy(
        *(),
        **{"Bucket": "bucket", "Key": "copied", "UploadId": name, "PartNumber": 1},
        CopySource="bucket/source",
        CopySourceIfMatch='"another"',
        CopySourceRange="bytes=10-99",
    )["CopyPartResult"]
    told = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(Bucket="bucket", Key="copied", UploadId=name, MultipartUpload=told)
    client.delete_object(Bucket="bucket", Key="source")
    assert body_of(client, "copied") == bytes(range(10, 100))


def test_keys_are_one_in_nfc(client: Any) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    put(client, composed)
    assert refused(client.put_object, Key=apart, Body=b"y", IfNoneMatch="*")[0] == 412
    put(client, apart, b"again")
    assert body_of(client, composed) == b"again"
    listed = client.list_objects_v2(Bucket="bucket", Prefix="caf")["Contents"]
    assert [item["Key"] for item in listed] == [apart]


def test_pages_are_whole_and_in_no_order(client: Any) -> None:
    keys = {f"list/{number:03}" for number in range(60)} | {f"list/f{number}/x" for number in range(15)}
    for key in keys:
        put(client, key)
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = client.list_objects_v2(Bucket="bucket", Prefix="list/", Delimiter="/", MaxKeys=7, **token)
        found += [item["Key"] for item in page.get("Contents", ())]
        found += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert len(found) == 75
    assert set(found) == {key if "f" not in key else key[: key.rfind("/") + 1] for key in keys}
    assert found != sorted(found)


def test_one_write_a_second_and_key(server: R2, client: Any) -> None:
    server.option(rate=True)
    put(client, "fast")
    assert refused(client.put_object, Key="fast", Body=b"y") == (429, "TooManyRequests")
    copy = {"Bucket": "bucket", "Key": "fast"}
    client.copy_object(Bucket="bucket", Key="faster", CopySource=copy)
    assert refused(client.copy_object, Key="faster", CopySource=copy)[0] == 429
    deadline = time.monotonic() + 10
    while True:
        try:
            put(client, "fast", b"later")
            break
        except botocore.exceptions.ClientError:
            assert time.monotonic() < deadline
    assert body_of(client, "fast") == b"later"


def raw(server: R2, head: str, body: bytes = b"") -> bytes:
    """What comes within a quarter of a second."""
    signed = "Authorization: AWS4-HMAC-SHA256 x\r\n"
    with socket.create_connection(("127.0.0.1", urllib3.util.parse_url(server.url).port or 0)) as sock:
        sock.sendall((head + signed + "\r\n").encode() + body)
        sock.settimeout(0.25)
        try:
            return sock.recv(65536)
        except TimeoutError:
            return b""


def test_it_is_silent_on_100_continue_and_refuses_chunks(server: R2) -> None:
    head = "PUT /bucket/e HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
    assert raw(server, head) == b""
    assert raw(server, head, b"abc").startswith(b"HTTP/1.1 200 OK")
    chunked = "PUT /bucket/e HTTP/1.1\r\nHost: x\r\nContent-Encoding: aws-chunked\r\n"
    assert raw(server, chunked + "Transfer-Encoding: chunked\r\n").startswith(b"HTTP/1.1 501 ")
    assert raw(server, "PUT /bucket/e HTTP/1.1\r\nHost: x\r\n").startswith(b"HTTP/1.1 411 ")
    assert raw(server, "PUT /bucket/%ff HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n").startswith(
        b"HTTP/1.1 400 "
    )
    named = "PUT /bucket/m HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nx-amz-meta-n: " + "v" * 8192 + "\r\n"
    assert b"MetadataTooLarge" in raw(server, named)


def test_presigned_urls_grow_old_and_others_are_refused(server: R2, client: Any) -> None:
    put(client, "signed", b"body")
    with urllib3.PoolManager() as pool:
        about = {"Bucket": "bucket", "Key": "signed"}
        url = client.generate_presigned_url("get_object", Params=about, ExpiresIn=60)
        assert pool.request("GET", url).data == b"body"
        assert pool.request("GET", url.replace("X-Amz-Expires=60", "X-Amz-Expires=-1")).status == 403
        assert pool.request("GET", f"{server.url}/bucket/signed").status == 403


def test_the_log_counts_requests_and_bytes(server: R2, client: Any) -> None:
    server.forget()
    put(client, "l/ü", bytes(1000))
    body_of(client, "l/ü")
    client.list_objects_v2(Bucket="bucket", Prefix="l/")
    refused(client.put_object, Key="l/ü", Body=b"x", IfNoneMatch="*")
    log = [(entry.operation, entry.key, entry.status, entry.received, entry.sent) for entry in server.log()]
    assert log[:2] == [("PutObject", "l/ü", 200, 1000, 0), ("GetObject", "l/ü", 200, 0, 1000)]
    assert log[2][0] == "ListObjectsV2"
    assert log[3][2:4] == (412, 1)  # billed too
    assert server.count("PutObject") == 2


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503, "code": "SlowDown", "retry_after": "1"},
        {"kind": "reset"},
        {"kind": "reset", "after": 70_000},
        {"kind": "hang", "seconds": 0.1},
    ],
)
def test_faults_hit_before_or_after_the_effect(
    server: R2, client: Any, fault: dict[str, Any], *, done: bool
) -> None:
    key = f"fault/{hash((done, *fault.items()))}"
    server.fault(Fault(operation="Put*", key="fault/*", skip=1, times=2, done=done, **fault))
    put(client, key + "first")
    for number in range(2):
        with pytest.raises((botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError)):
            put(client, f"{key}{number}", bytes(200_000))
        there = [o["Key"] for o in client.list_objects_v2(Bucket="bucket", Prefix=key).get("Contents", ())]
        assert (f"{key}{number}" in there) is done
    put(client, key + "last")


def test_what_hangs_ends_with_the_client_or_is_healed(server: R2, client: Any) -> None:
    server.fault(Fault("hang", operation="GetObject", times=-1))
    failed: list[Exception] = []

    def read() -> None:
        try:
            body_of(client, "none")
        except botocore.exceptions.HTTPClientError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    server.heal()
    thread.join(10)
    assert len(failed) == 1


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no such fault: nap"):
        Fault("nap")


def test_what_is_stored_is_there_after_a_kill(tmp_path: Path) -> None:
    """Objects, and uploads with their parts; nothing of a body that had not arrived."""
    with r2_server(tmp_path) as server:
        server.fill("bucket", {"games/a": b"a" * 1000, "gone": b"x", "replaced": b"old"})
        server.fill("bucket", {"replaced": b"new"})
        client = server.client()
        client.delete_object(Bucket="bucket", Key="gone")
        upload = started(client, "parts", b"first")
        sock = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        head = "PUT /bucket/half HTTP/1.1\r\nContent-Length: 99\r\nAuthorization: AWS4-HMAC-SHA256 x\r\n\r\n"
        sock.sendall(head.encode() + b"half")
        while len(os.listdir(tmp_path / "blobs")) < 4:
            time.sleep(0.01)
        server.kill()
        sock.close()
        with pytest.raises(OSError):
            http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=1).request("GET", "/")
        server.start()
        names = [item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]]
        assert sorted(names) == ["games/a", "replaced"]
        assert body_of(client, "replaced") == b"new"
        assert len(os.listdir(tmp_path / "blobs")) == 3
        client.complete_multipart_upload(Bucket="bucket", **upload)
        assert body_of(client, "parts") == b"first"
        client.close()


def test_it_starts_quickly(tmp_path: Path) -> None:
    """Best of three: the machine may be busy. (Not a benchmark: a server per test has to be possible.)"""
    took = []
    for _ in range(3):
        began = time.monotonic()
        with r2_server(tmp_path):
            took.append(time.monotonic() - began)
    assert min(took) < 2.0


def test_dates_are_those_of_http() -> None:
    assert http_date(0) == "Thu, 01 Jan 1970 00:00:00 GMT"
