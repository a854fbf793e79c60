"""`r2://` and `s3://`: a bucket through boto3; ranged reads through `signing`, which costs a third of it.

Every body is checked: status, Content-Range, length, etag, no Content-Encoding, and the MD5 where the etag
is one and the object is read whole. What a plain-HTTP connection flips inside a part of an object cannot be
seen by anyone; TLS sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import trio
import urllib3

from vfs.errors import (
    BadBody,
    ConfigError,
    Denied,
    NotFound,
    ReadOnly,
    ReelfsError,
    Stale,
    StoreError,
    Unavailable,
)
from vfs.spans import StoredObject
from vfs.storage.base import Body, ObjectDetails, Page
from vfs.storage.signing import Answer, SignedGets, Transfer

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
#: Attempts botocore makes by itself, unseen: our own policy stands above it.
BOTO_ATTEMPTS = 1
#: Threads for head and list beside those for reads, so that `ls` never waits behind a copy.
METADATA_THREADS = 16
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def open_bucket(
    scheme: str,
    bucket: str,
    prefix: str,
    *,
    deadline: float,
    max_connections: int,
    environ: Mapping[str, str],
) -> S3Store:
    """A bucket as a store. Raises ConfigError when no endpoint is known, Denied without credentials."""
    endpoint = environ.get("R2_ENDPOINT")
    if not endpoint and (account := environ.get("R2_ACCOUNT_ID")):
        endpoint = f"https://{account}.r2.cloudflarestorage.com"
    endpoint = endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if scheme == "r2" and not endpoint:
        raise ConfigError("r2:// needs an endpoint: set R2_ACCOUNT_ID (or R2_ENDPOINT) in the environment")
    identity, secret = environ.get("R2_ACCESS_KEY_ID"), environ.get("R2_SECRET_ACCESS_KEY")
    pair = (identity, secret) if identity and secret else (None, None)
    session = boto3.session.Session(aws_access_key_id=pair[0], aws_secret_access_key=pair[1])
    region = "auto" if scheme == "r2" else session.region_name or "us-east-1"
    if session.get_credentials() is None:
        raise Denied(
            "no credentials: set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, or an AWS profile (AWS_PROFILE)"
        )
    read_timeout = max(1.0, min(20.0, deadline / 3))
    client = session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        config=botocore.config.Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=max_connections + METADATA_THREADS,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": BOTO_ATTEMPTS},
        ),
    )
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-send.s3.{operation}", _without_expect)
    gets = SignedGets(
        endpoint=client.meta.endpoint_url,
        bucket=bucket,
        region=region,
        credentials=session.get_credentials(),
        connections=max_connections,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        verify=environ.get("AWS_CA_BUNDLE") or environ.get("REQUESTS_CA_BUNDLE") or True,
    )
    return S3Store(client, gets, bucket, prefix, scheme=scheme, connections=max_connections)


def _without_expect(request: Any, **_: Any) -> None:
    """R2 does not answer `Expect: 100-continue`, and botocore would wait a second for each PUT."""
    request.headers.pop("Expect", None)


class S3Store:
    """One prefix of one bucket."""

    def __init__(
        self, client: Any, gets: SignedGets, bucket: str, prefix: str, *, scheme: str, connections: int
    ) -> None:
        self._client = client
        self._gets = gets
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._scheme = scheme
        self._reading = trio.CapacityLimiter(connections)
        self._asking = trio.CapacityLimiter(METADATA_THREADS)

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"{self._scheme}://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def remote(self) -> bool:
        """True."""
        return True

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object, its headers and metadata."""
        answer = await self._ask(key, self._client.head_object, Bucket=self._bucket, Key=self._prefix + key)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        return ObjectDetails(
            _described(key, answer["ContentLength"], answer["ETag"], answer["LastModified"]),
            {name.lower(): value for name, value in headers.items()},
            {name.lower(): value for name, value in answer["Metadata"].items()},
        )

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page, in whatever order the store gives it."""
        parameters: dict[str, Any] = {"Prefix": self._prefix + prefix, "MaxKeys": limit}
        if delimiter:
            parameters["Delimiter"] = delimiter
        if token is not None:
            parameters["ContinuationToken"] = token
        answer = await self._ask(None, self._client.list_objects_v2, Bucket=self._bucket, **parameters)
        cut = len(self._prefix)
        return Page(
            tuple(
                _described(item["Key"][cut:], item["Size"], item["ETag"], item["LastModified"])
                for item in answer.get("Contents", ())
            ),
            tuple(item["Prefix"][cut:] for item in answer.get("CommonPrefixes", ())),
            answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
        )

    async def read(self, stored: StoredObject, offset: int, length: int) -> Body:
        """Exactly these bytes of exactly this version."""
        transfer = Transfer()
        try:
            answer = await trio.to_thread.run_sync(
                self._get, stored, offset, length, transfer, limiter=self._reading, abandon_on_cancel=True
            )
        except trio.Cancelled:
            transfer.abandon()
            raise
        if answer.status in (200, 206) and _is_other(answer.headers, stored):
            # Another etag: replaced, on a server that does not know If-Match? Or an answer gone astray?
            now = (await self.head(stored.key)).object
            if now.version != stored.version:
                raise Stale(f"{stored.key} was replaced")
        _check(answer, stored, offset, length)
        if length == stored.size:
            await trio.to_thread.run_sync(_check_md5, answer, stored)
        return answer.body

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Not yet."""
        raise ReadOnly(f"{key}: writing is not available")

    async def delete(self, stored: StoredObject) -> None:
        """Not yet."""
        raise ReadOnly(f"{stored.key}: writing is not available")

    def presign(self, key: str, *, expires: int = 3600) -> str | None:
        """A URL that reads the object for a while without credentials: whoever has it can read."""
        url: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": self._prefix + key}, ExpiresIn=expires
        )
        return url

    async def aclose(self) -> None:
        """Close connections."""
        self._gets.close()
        await trio.to_thread.run_sync(self._client.close)

    def _get(self, stored: StoredObject, offset: int, length: int, transfer: Transfer) -> Answer:
        """In a thread: one GET; what kept it from being answered as an error of ours."""
        key = self._prefix + stored.key
        try:
            answer = self._gets.get(key, offset, length, stored.version, transfer)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"{stored.key}: {_short(error)}") from error
        except botocore.exceptions.BotoCoreError as error:
            raise _translated(error, stored.key) from error
        if answer.status in (401, 403):
            self._gets.forget(key)
        return answer

    async def _ask(self, key: str | None, function: Callable[..., Any], **parameters: Any) -> Any:
        """A call of boto3 in a thread, with errors of ours. key: what a 404 is about; None = the bucket."""

        def call() -> Any:
            try:
                return function(**parameters)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                raise _translated(error, key) from error

        return await trio.to_thread.run_sync(call, limiter=self._asking, abandon_on_cancel=True)


def _described(key: str, size: int, etag: str, modified: Any) -> StoredObject:
    # Whole seconds: a HEAD knows no more, and the same version must look the same from a listing.
    return StoredObject(key, size, _quoted(etag), int(modified.timestamp()) * 10**9)


def _quoted(etag: str) -> str:
    """One spelling of an etag: some servers leave out the quotes in listings, or mark it weak."""
    return '"' + etag.removeprefix("W/").strip('"') + '"'


def _is_other(headers: Mapping[str, str], stored: StoredObject) -> bool:
    """The answer names an etag, and it is not the pinned one."""
    return "etag" in headers and _quoted(headers["etag"]) != stored.version


def _check(answer: Answer, stored: StoredObject, offset: int, length: int) -> None:
    """Nothing but the bytes asked for passes. Raises what the answer means instead."""
    if answer.status not in (200, 206):
        retry = answer.headers.get("retry-after", "")
        raise _refusal(answer.status, stored.key, float(retry) if retry.isdigit() else None, True)
    headers = answer.headers
    what = f"{stored.key}: bytes {offset}+{length}"
    if headers.get("content-encoding", "identity") not in ("identity", "aws-chunked", ""):
        raise StoreError(
            f"{stored.key} is stored with Content-Encoding {headers['content-encoding']}: its bytes "
            "cannot be read by range; store it without, or with Cache-Control: no-transform"
        )
    if _is_other(headers, stored):
        raise BadBody(f"{what}: answered with another etag")
    if (given := headers.get("content-range")) is not None:
        match = _RANGE.fullmatch(given)
        if match is None or (int(match[1]), int(match[2])) != (offset, offset + length - 1):
            raise BadBody(f"{what}: answered with range {given!r}")
        if match[3] not in ("*", str(stored.size)):
            raise BadBody(
                f"{what}: the object is said to have {match[3]} bytes where {stored.size} are listed"
            )
    elif answer.status == 206 or offset or length != stored.size:
        raise BadBody(f"{what}: answered {answer.status} without a range")
    if len(answer.body) != length:
        raise BadBody(f"{what}: {len(answer.body)} bytes came")


def _check_md5(answer: Answer, stored: StoredObject) -> None:
    """An object read whole whose etag is its MD5 (single part, not encrypted with other keys): compare."""
    match = _MD5.fullmatch(stored.version)
    encrypted = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    if match is None or encrypted or "x-amz-server-side-encryption-customer-algorithm" in answer.headers:
        return
    if hashlib.md5(answer.body, usedforsecurity=False).hexdigest() != match[1]:
        raise BadBody(f"{stored.key}: the bytes do not have the MD5 of the etag")


def _refusal(status: int, key: str | None, retry_after: float | None, is_read: bool) -> ReelfsError:
    """What an HTTP status other than success means."""
    what = key if key is not None else "the bucket"
    if status == 412:
        return Stale(f"{what} was replaced")
    if status == 404:
        return NotFound(f"no such object: {key}") if key is not None else StoreError("no such bucket")
    if status in (401, 403):
        return Denied(
            f"{what}: the store refused the credentials (HTTP {status}): check keys, scope and clock"
        )
    if status == 416 and is_read:
        return BadBody(f"{what}: the store has fewer bytes than it listed")
    if status in (408, 429) or status >= 500:
        return Unavailable(f"{what}: HTTP {status}", retry_after)
    return StoreError(f"{what}: HTTP {status}")


def _translated(error: Exception, key: str | None) -> ReelfsError:
    """An exception of botocore as one of ours."""
    if isinstance(error, botocore.exceptions.ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(answer.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return StoreError("no such bucket: check the name, the account and the endpoint")
        if code in (
            "SlowDown",
            "RequestTimeout",
            "InternalError",
            "ServiceUnavailable",
            "RequestTimeTooSkewed",
        ):
            return Unavailable(f"{key or 'the bucket'}: {code}")
        return _refusal(status, key, None, False)
    if isinstance(
        error, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError
    ):
        return Denied("no credentials: set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, or an AWS profile")
    return Unavailable(_short(error))


def _short(error: BaseException) -> str:
    """One line without object addresses."""
    return (
        re.sub(r"<[^>]* at 0x[0-9a-f]+>:? ?", "", str(error)).splitlines()[0][:300]
        if str(error)
        else repr(error)
    )


__all__ = ["S3Store", "open_bucket"]
