"""Writing to a bucket: conditional PUTs, uploads in parts, deletes. Calls of boto3, for `r2.S3Store`.

Every PUT and every completion carries its condition: If-None-Match: * for a new key, If-Match with the etag
of what it replaces. R2 has no versions: a bare PUT could not be taken back.
"""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from vfs.errors import NotFound, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage.answers import quoted
from vfs.storage.base import Body, Part

#: What a browser is told where the name says nothing.
_ANY = "application/octet-stream"
#: Of a folder marker, as other programs have it.
_FOLDER = "application/x-directory"


def condition(replaces: StoredObject | None) -> dict[str, str]:
    """Parameters of boto3."""
    return {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces.version}


def content_type(key: str) -> str:
    """By the extension of the key."""
    if key.endswith("/"):
        return _FOLDER
    return mimetypes.guess_type(key, strict=False)[0] or _ANY


def put(
    client: Any,
    bucket: str,
    key: str,
    body: Body,
    replaces: StoredObject | None,
    metadata: Mapping[str, str] | None,
) -> tuple[str, datetime]:
    """Store an object; its etag, and the time by the server's clock (by ours where it tells none)."""
    answer = client.put_object(
        Bucket=bucket,
        Key=key,
        Body=sendable(body),
        ContentType=content_type(key),
        Metadata=dict(metadata or {}),
        **condition(replaces),
    )
    return quoted(answer["ETag"]), _time_of(answer["ResponseMetadata"]["HTTPHeaders"])


def sendable(body: Body) -> bytes | bytearray:
    """What boto3 takes for bytes: the same ones, not copied unless they are a part of something."""
    if not isinstance(body, memoryview):
        return body
    whole = body.obj
    return whole if isinstance(whole, bytes | bytearray) and len(whole) == body.nbytes else bytes(body)


def _time_of(headers: Mapping[str, str]) -> datetime:
    for name in ("last-modified", "date"):
        with contextlib.suppress(KeyError, ValueError):
            return parsedate_to_datetime(headers[name])
    return datetime.now(UTC)


def delete(client: Any, bucket: str, key: str, stored: StoredObject) -> None:
    """Remove an object if it has this version, where the service knows that condition."""
    client.delete_object(Bucket=bucket, Key=key, IfMatch=stored.version)


def start(client: Any, bucket: str, key: str, metadata: Mapping[str, str] | None) -> str:
    """Begin an upload; its id."""
    answer = client.create_multipart_upload(
        Bucket=bucket, Key=key, ContentType=content_type(key), Metadata=dict(metadata or {})
    )
    return str(answer["UploadId"])


def part(client: Any, bucket: str, key: str, upload: str, number: int, body: Body) -> Part:
    """Send a part."""
    answer = client.upload_part(
        Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=sendable(body)
    )
    return Part(number, quoted(answer["ETag"]))


def complete(
    client: Any, bucket: str, key: str, upload: str, parts: Sequence[Part], replaces: StoredObject | None
) -> str:
    """Join the parts; the etag of the object."""
    told = [{"PartNumber": part.number, "ETag": part.version} for part in parts]
    answer = client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": told}, **condition(replaces)
    )
    return quoted(answer["ETag"])


def under_way(client: Any, bucket: str, prefix: str) -> dict[str, str]:
    """Uploads below a prefix: keys by id."""
    found: dict[str, str] = {}
    marks: dict[str, str] = {}
    while True:
        answer = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix, **marks)
        found |= {item["UploadId"]: item["Key"] for item in answer.get("Uploads", ())}
        if not answer.get("IsTruncated"):
            return found
        marks = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def refused(error: StoreError | NotFound | Stale, key: str, replaces: StoredObject | None) -> Exception:
    """What a refusal of a write means: 404 of a conditional PUT is that what it replaces is gone."""
    if isinstance(error, Stale):
        return Stale(f"{key} was replaced" if replaces else f"{key} is there already")
    if isinstance(error, NotFound) and replaces is not None:
        return NotFound(f"{key} is gone")
    return error
