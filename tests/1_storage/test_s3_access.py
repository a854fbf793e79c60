"""How a bucket is reached: endpoints, keys, certificates, proxies, signatures; and what costs nothing."""

from __future__ import annotations

import base64
import hashlib
import logging
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio
import urllib3
from botocore.auth import S3SigV4Auth
from trio.testing import trio_test

from tests.certificates import self_signed
from tests.faults.proxy import Proxy, Rule
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, environ_for, moto_server, rclone_server
from vfs.errors import BadBody, ConfigError, Denied, NotFound, ReelfsError, Stale, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage import calls, signing
from vfs.storage.access import Target, connect, endpoint_of
from vfs.storage.answers import check, retry_after
from vfs.storage.open import open_store
from vfs.storage.r2 import S3Store
from vfs.storage.signing import Answer

BODY = bytes(range(256)) * 20
KEYS = {"R2_ACCESS_KEY_ID": "identity", "R2_SECRET_ACCESS_KEY": "secret"}
LOOPBACK = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", **KEYS}


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        server.fill("bucket", {"games/a.mp4": BODY, "b c+d%20.mp4": BODY})
        yield server


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's AWS settings, and no asking of a cloud's metadata service."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def s3(url: str, environ: dict[str, str], **options: Any) -> S3Store:
    store = open_store(url, environ=environ, **options)
    assert isinstance(store, S3Store)
    return store


# -- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "environ", "error", "text"),
    [
        ("r2://bucket", KEYS, ConfigError, "set R2_ACCOUNT_ID"),
        ("r2://", LOOPBACK, ConfigError, "names no bucket"),
        ("s3:///prefix", LOOPBACK, ConfigError, "names no bucket"),
        ("s3://a b/c", LOOPBACK, ConfigError, "'a b' cannot be the name of a bucket"),
        ("s3://bucket?versions", LOOPBACK, ConfigError, "cannot be the name of a bucket"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, Denied, "set R2_ACCESS_KEY_ID and"),
        ("s3://bucket", {"R2_ACCESS_KEY_ID": "x"}, Denied, "R2_SECRET_ACCESS_KEY is not"),
        ("s3://bucket", {"AWS_SECRET_ACCESS_KEY": "x"}, Denied, "AWS_ACCESS_KEY_ID is not"),
        ("s3://bucket", KEYS | {"R2_ENDPOINT": "host.example"}, ConfigError, "is not a URL: give https://"),
        ("s3://bucket", KEYS | {"R2_ENDPOINT": "ftp://host"}, ConfigError, "is not a URL"),
        ("s3://bucket", KEYS | {"R2_ENDPOINT": "http://[::1"}, ConfigError, "is not a URL"),
        ("s3://bucket", KEYS | {"R2_ENDPOINT": "http://host:port"}, ConfigError, "is not a URL"),
        ("s3://bucket", KEYS | {"R2_ENDPOINT": "https://host/x/y"}, ConfigError, "has a path"),
        ("s3://bucket", {"AWS_PROFILE": "none"}, ConfigError, r"profile \(none\) could not be found"),
        ("s3://bucket", LOOPBACK | {"AWS_CA_BUNDLE": "/no/such"}, ConfigError, "'/no/such' does not exist"),
        ("file://host/path", {}, ConfigError, "names another machine"),
        ("file:///no/such/folder", {}, ConfigError, "is not a folder"),
        ("/no/such/folder", {}, ConfigError, "is not a folder"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    url: str, environ: dict[str, str], error: type[ReelfsError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        open_store(url, environ=environ)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_endpoints() -> None:
    def endpoint(scheme: str = "r2", **environ: str) -> str | None:
        return endpoint_of(Target(scheme, "bucket", "", 30.0, 8, environ))

    assert endpoint(R2_ACCOUNT_ID="abc") == "https://abc.r2.cloudflarestorage.com"
    assert endpoint(R2_ACCOUNT_ID="abc", R2_ENDPOINT="http://h:1/") == "http://h:1"
    assert endpoint(R2_ENDPOINT="https://h/bucket") == "https://h"  # as the dashboard shows it
    assert endpoint(AWS_ENDPOINT_URL="http://h:1") == "http://h:1"
    assert endpoint(AWS_ENDPOINT_URL="http://h:1", AWS_ENDPOINT_URL_S3="http://h:2") == "http://h:2"
    assert endpoint("s3", R2_ENDPOINT="", AWS_ENDPOINT_URL="") is None


@trio_test
async def test_urls_name_the_source_without_secrets() -> None:
    for given, shown in (
        ("s3://bucket", "s3://bucket"),
        ("r2://bucket/", "r2://bucket"),
        ("s3://bucket/a b/100%25/", "s3://bucket/a b/100%25"),
    ):
        store = s3(given, LOOPBACK)
        assert (store.url, store.remote) == (shown, True)
        await store.aclose()


def test_local_urls(tmp_path: Path) -> None:
    folder = tmp_path / "a b%41#?"
    folder.mkdir()
    for url in (str(folder), folder.as_uri(), folder.as_uri().replace("file://", "file://localhost")):
        store = open_store(url)
        assert store is not None
        assert store.url == folder.as_uri()
    assert open_store("http://host/") is None
    memory = open_store("memory://")
    assert memory is not None
    assert memory.url == "memory://"


def test_boto3_is_imported_for_buckets_alone(tmp_path: Path) -> None:
    """It would cost every mount of a folder some 25 MB and half of its start."""
    code = (
        "import sys; from vfs.storage.open import open_store; from vfs.storage.guard import GuardedStore;"
        f"open_store({str(tmp_path)!r}); open_store('memory://');"
        "sys.exit(bool({'boto3', 'botocore', 'urllib3'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- against a server that checks signatures ----------------------------------------------------------------


@trio_test
async def test_wrong_keys_are_denied(rclone: Server) -> None:
    store = s3("s3://bucket", rclone.environ | {"R2_ACCESS_KEY_ID": ACCESS_KEY, "R2_SECRET_ACCESS_KEY": "no"})
    stored = StoredObject("games/a.mp4", len(BODY), '"x"')
    for ask in (store.list, lambda: store.head("games/a.mp4"), lambda: store.read(stored, 0, 1)):
        with pytest.raises(Denied, match="refused the credentials"):
            await ask()
    await store.aclose()


@trio_test
async def test_a_bucket_that_is_not_there(rclone: Server) -> None:
    """Not an empty one; and not "no such file", which would be remembered."""
    store = s3("s3://nowhere", rclone.environ)
    with pytest.raises(StoreError, match="no such bucket: check the name") as caught:
        await store.list()
    assert not isinstance(caught.value, NotFound)
    await store.aclose()


@trio_test
async def test_one_signature_serves_many_reads(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any range and any version, until it is too old or was refused."""
    signed: list[str] = []
    real = S3SigV4Auth.add_auth

    def add_auth(self: Any, request: Any) -> None:
        signed.append(request.url)
        real(self, request)

    monkeypatch.setattr(S3SigV4Auth, "add_auth", add_auth)
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _: now[0])
    store = s3("s3://bucket", rclone.environ)
    for key in ("games/a.mp4", "b c+d%20.mp4"):
        stored = (await store.head(key)).object
        signed.clear()
        for offset in range(0, 1000, 100):
            assert bytes(await store.read(stored, offset, 50)) == BODY[offset : offset + 50]
        assert len(signed) == 1
        now[0] += signing.SIGNATURE_SECONDS
        await store.read(stored, 0, 50)
        assert len(signed) == 2
    await store.aclose()


@trio_test
async def test_credentials_that_changed_in_their_file_are_used(
    rclone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal the files are read again, at most so often; the answer then is "try again"."""
    monkeypatch.setattr(calls, "RENEWAL_SECONDS", 0.0)
    path = tmp_path / "credentials"

    def write(secret: str) -> None:
        path.write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={secret}\n")

    write(SECRET_KEY)
    store = s3("s3://bucket", {"AWS_ENDPOINT_URL": rclone.url})
    stored = (await store.head("games/a.mp4")).object
    await store.read(stored, 0, 10)
    asks: list[Callable[[], Any]] = [
        store.list,
        lambda: store.head("games/a.mp4"),
        lambda: store.read(stored, 0, 10),
    ]
    for ask in asks:
        write("wrong-secret")
        store._calls.access = await trio.to_thread.run_sync(connect, store._calls.access.target)
        with pytest.raises(Denied):
            await ask()
        write(SECRET_KEY)
        with pytest.raises(Unavailable, match="credentials had changed"):
            await ask()
        await ask()
    await store.aclose()


@trio_test
async def test_presigned_urls_read_without_keys(rclone: Server) -> None:
    store = s3("s3://bucket", rclone.environ)
    url = store.presign("b c+d%20.mp4", expires=60)
    assert url is not None
    assert SECRET_KEY not in url
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", url).data == BODY
        assert pool.request("GET", url.partition("?")[0]).status in (400, 403)
    assert store.presign("") is None
    endless = store.presign("games/a.mp4", expires=10**9)
    assert endless is not None
    assert "X-Amz-Expires=604800&" in endless
    await store.aclose()


@trio_test
async def test_nothing_secret_is_logged(rclone: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="vfs"):
        store = s3("s3://bucket", rclone.environ)
        stored = (await store.head("games/a.mp4")).object
        await store.read(stored, 0, 10)
        store.presign("games/a.mp4")
        await store.aclose()
    for text in (ACCESS_KEY, SECRET_KEY, "Signature"):
        assert text not in caplog.text


# -- connections --------------------------------------------------------------------------------------------


@trio_test
async def test_connections_are_kept(rclone: Server) -> None:
    """Reads one after the other use one connection, also after answers that were errors or were short."""
    with Proxy(rclone.url) as proxy:
        store = s3("s3://bucket", environ_for(proxy.url))
        stored = (await store.head("games/a.mp4")).object
        proxy.reset()
        for offset in range(20):
            await store.read(stored, offset, 100)
        proxy.fault(Rule("status", kind="get", times=3))
        for _ in range(3):
            with pytest.raises(Unavailable):
                await store.read(stored, 0, 100)
        await store.read(stored, 0, 100)
        assert proxy.counts().connections == 0  # that of the HEAD serves them all
        await store.aclose()


@trio_test
async def test_a_connection_with_bytes_left_on_it_is_not_used_again(rclone: Server) -> None:
    """A server that sends more than was asked for would else answer the next read with the rest."""
    with Proxy(rclone.url) as proxy:
        store = s3("s3://bucket", environ_for(proxy.url))
        stored = (await store.head("games/a.mp4")).object
        for fault in ("whole", "shift", "range", "truncate"):
            proxy.fault(Rule(fault, kind="get", times=1))
            with pytest.raises(BadBody):
                await store.read(stored, 1000, 100)
            proxy.clear()
            assert bytes(await store.read(stored, 2000, 100)) == BODY[2000:2100]
        await store.aclose()


@trio_test
async def test_a_cancelled_read_frees_its_thread(rclone: Server) -> None:
    """With one connection in all and a server that hangs: the next read does not wait for the timeout."""
    for at in (None, 0, 10):
        with Proxy(rclone.url) as proxy:
            store = s3("s3://bucket", environ_for(proxy.url), max_connections=1, deadline=60.0)
            stored = (await store.head("games/a.mp4")).object
            proxy.fault(Rule("hang", kind="get", times=1, at=at))
            with trio.move_on_after(0.3) as scope:
                await store.read(stored, 0, 100)
            assert scope.cancelled_caught
            with trio.fail_after(5.0):  # the timeout would be twenty seconds
                assert bytes(await store.read(stored, 0, 100)) == BODY[:100]
            await store.aclose()


@trio_test
async def test_tls_with_a_bundle_of_ones_own(tmp_path: Path) -> None:
    """The bundle counts for listings and for reads; without it neither is answered."""
    certificate, key = self_signed(tmp_path)
    (tmp_path / "root").mkdir()
    with rclone_server(tmp_path / "root", certificate=(certificate, key)) as server:
        server.fill("bucket", {"a": BODY})
        store = s3("s3://bucket", server.environ)
        stored = (await store.head("a")).object
        assert bytes(await store.read(stored, 0, len(BODY))) == BODY
        await store.aclose()
        strange = s3("s3://bucket", {k: v for k, v in server.environ.items() if k != "AWS_CA_BUNDLE"})
        for ask in (strange.list, lambda: strange.read(stored, 0, 1)):
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await ask()
        await strange.aclose()


@trio_test
async def test_a_proxy_of_the_environment_is_used(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """For reads as for everything else. (The server answers as if it were the proxy.)"""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HTTP_PROXY", rclone.url)
    monkeypatch.setenv("http_proxy", rclone.url)
    store = s3("s3://bucket", environ_for("http://store.invalid:9"))
    for key in ("games/a.mp4", "b c+d%20.mp4"):
        stored = (await store.head(key)).object
        assert bytes(await store.read(stored, 5, 10)) == BODY[5:15]
    await store.aclose()


# -- what is sent -------------------------------------------------------------------------------------------


@trio_test
async def test_uploads_carry_nothing_r2_refuses() -> None:
    """No `Expect` (a second's wait for each), no trailer, no chunks signed one by one."""
    with moto_server() as server:
        server.fill("bucket", {})
        store = s3("s3://bucket", server.environ)
        client, seen = store._calls.access.client, []
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register_last(
                f"before-send.s3.{operation}", lambda request, **_: seen.append(dict(request.headers))
            )
        for body in (b"", b"bytes"):
            client.put_object(Bucket="bucket", Key="k", Body=body)
        upload = client.create_multipart_upload(Bucket="bucket", Key="m")["UploadId"]
        client.upload_part(Bucket="bucket", Key="m", UploadId=upload, PartNumber=1, Body=b"part")
        assert len(seen) == 3
        for headers in seen:
            names = {name.lower() for name in headers}
            assert not names & {"expect", "transfer-encoding", "content-encoding", "x-amz-trailer"}
            assert "content-length" in names
        await store.aclose()


@trio_test
async def test_keys_with_dots_reach_the_server_as_they_are() -> None:
    """No layer tidies up `..` in a key: another object would be asked for."""
    with moto_server() as server, Proxy(server.url) as proxy:
        server.fill("bucket", {"b": b"other"})
        store = s3("s3://bucket", environ_for(proxy.url))
        proxy.reset()
        for key in ("a/../b", "./b", "a//b", "b/.."):
            with pytest.raises((NotFound, Stale, StoreError)):
                await store.read(StoredObject(key, 5, '"x"'), 0, 5)
        asked = [entry.path for entry in proxy.log() if entry.kind == "get"]
        assert asked == ["bucket/a/../b", "bucket/./b", "bucket/a//b", "bucket/b/.."]
        await store.aclose()


# -- checks of answers --------------------------------------------------------------------------------------


def answer(body: bytes = BODY, status: int = 206, /, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, bytearray(body))


def test_the_md5_of_a_whole_object_is_compared() -> None:
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    whole = StoredObject("a", len(BODY), etag)
    check(answer(BODY, 200), whole, 0, len(BODY))
    flipped = bytearray(BODY)
    flipped[77] ^= 1
    with pytest.raises(BadBody, match="MD5"):
        check(answer(bytes(flipped), 200), whole, 0, len(BODY))
    # Where the etag is no MD5 of the bytes, nothing can be compared.
    check(answer(BODY, 200), StoredObject("a", len(BODY), etag[:-1] + '-2"'), 0, len(BODY))
    check(answer(bytes(flipped), 200, x_amz_server_side_encryption="aws:kms"), whole, 0, len(BODY))


@pytest.mark.parametrize("name", ["x_amz_checksum_crc32", "x_amz_checksum_sha1", "x_amz_checksum_sha256"])
def test_checksums_the_store_sends_are_compared(name: str) -> None:
    sums = {
        "x_amz_checksum_crc32": zlib.crc32(BODY).to_bytes(4, "big"),
        "x_amz_checksum_sha1": hashlib.sha1(BODY).digest(),
        "x_amz_checksum_sha256": hashlib.sha256(BODY).digest(),
    }
    given = base64.b64encode(sums[name]).decode()
    stored = StoredObject("a", len(BODY), '"x-2"')
    check(answer(BODY, 200, **{name: given}), stored, 0, len(BODY))
    check(answer(BODY, 200, **{name: "AAAA-2"}), stored, 0, len(BODY))  # of parts: not of these bytes
    with pytest.raises(BadBody, match=name.replace("_", "-")):
        check(answer(BODY, 200, **{name: base64.b64encode(b"no").decode()}), stored, 0, len(BODY))
    part = answer(BODY[:10], content_range=f"bytes 0-9/{len(BODY)}", **{name: "AAAA"})
    check(part, stored, 0, 10)  # rclone sends that of the whole object with parts too


@pytest.mark.parametrize(
    ("name", "value"), [("crc32c", 0xE3069283), ("crc64nvme", 0xAE8B14860A799888), ("crc32", 0xCBF43926)]
)
def test_cyclic_checksums_are_those_of_their_catalogue(name: str, value: int) -> None:
    """Of the nine digits, by which such sums are told apart (the `check` of a CRC catalogue)."""
    body, size = b"123456789", 8 if name == "crc64nvme" else 4
    stored, header = StoredObject("a", len(body), '"x-2"'), f"x_amz_checksum_{name}"
    given = base64.b64encode(value.to_bytes(size, "big")).decode()
    check(answer(body, 200, **{header: given}), stored, 0, len(body))
    for wrong in (b"123456780", b"123456798"):
        with pytest.raises(BadBody, match=name):
            check(answer(wrong, 200, **{header: given}), stored, 0, len(body))


def test_compressed_objects_that_come_as_stored_are_read() -> None:
    """S3 sends them as they are: their ranges and sizes fit. Unpacked ones (R2) do not, and are refused."""
    stored = StoredObject("a", len(BODY), '"x-2"')
    fits = answer(BODY[:10], content_range=f"bytes 0-9/{len(BODY)}", content_encoding="gzip")
    check(fits, stored, 0, 10)
    with pytest.raises(StoreError, match="stored with Content-Encoding gzip") as caught:
        check(answer(BODY[:10], 200, content_encoding="gzip"), stored, 0, 10)
    assert not isinstance(caught.value, BadBody)


def test_retry_after() -> None:
    assert retry_after({"retry-after": "3"}) == 3.0
    assert retry_after({"retry-after": " 2.5 "}) == 2.5
    for odd in ("", "-1", "nan", "1e9", "tomorrow", "Wed, 32 Oct 2026 07:28:00 GMT", "9" * 30):
        assert retry_after({"retry-after": odd}) is None


@pytest.mark.parametrize("skew", [0, -7200, 7200])
def test_retry_after_a_date(skew: int) -> None:
    """By the clock of the store, which it tells; a date that is over means at once."""
    now = time.time() + skew
    for seconds in (7, 0, -100):
        told = {"retry-after": formatdate(now + seconds, usegmt=True), "date": formatdate(now, usegmt=True)}
        waited = retry_after(told)
        assert waited is not None
        assert abs(waited - max(0, seconds)) <= 1.0
    alone = retry_after({"retry-after": formatdate(time.time() + 50, usegmt=True)})
    assert alone is not None
    assert 45 <= alone <= 50


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"])
def test_expired_tokens_are_refusals(code: str) -> None:
    """AWS says so with status 400."""
    body = f"<Error><Code>{code}</Code></Error>".encode()
    with pytest.raises(Denied, match=code):
        check(answer(body, 400), StoredObject("a", 5, '"x"'), 0, 5)
