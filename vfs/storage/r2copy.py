"""Copies within a bucket. Calls of boto3, for `r2.S3Store`.

The source is pinned by its etag where the request knows such a condition (CopyObject does). That the target
is what it is to be stands in one too: If-(None-)Match on S3, and on R2 headers of its own, marked beta
there. Since other services ignore either, the target is looked at first: there, one that comes between the
look and the copy is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfs.errors import NotFound, Stale
from vfs.spans import StoredObject
from vfs.storage.answers import quoted
from vfs.storage.r2write import condition, content_type
from vfs.storage.upload import MIB, MOST_PARTS

#: Bytes that one CopyObject copies (S3 and R2: 5 GiB less a little); more goes in parts,
MOST_COPIED = 4 << 30
#: each at least this.
LEAST_COPIED_PART = 512 * MIB
#: Headers that stay when the metadata of an object is replaced: parameters of boto3 by the names of a HEAD.
_KEPT = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires")
_CONDITIONS = {
    "If-Match": "cf-copy-destination-if-match",
    "If-None-Match": "cf-copy-destination-if-none-match",
}


def speak_r2(client: Any) -> None:
    """Let the conditions of copies go out as R2 calls them."""
    client.meta.events.register("before-call.s3.CopyObject", _renamed)


def _renamed(params: Mapping[str, Any], **_: Any) -> None:
    headers = params["headers"]
    for name, theirs in _CONDITIONS.items():
        if name in headers:
            headers[theirs] = headers.pop(name)


def look(
    client: Any, bucket: str, stored: StoredObject, source: str, key: str, replaces: StoredObject | None
) -> Mapping[str, Any]:
    """The HEAD of the source. Raises Stale, or boto3's errors, where source or target is another version.

    source, key: with the prefix of the store.
    """
    if source == key:
        if replaces is None or replaces.version != stored.version:
            raise Stale(f"{stored.key} is there already, or was replaced")
    else:
        now = _etag(client, bucket, key)
        if replaces is None and now is not None:
            raise Stale(f"{key} is there already")
        if replaces is not None and now is None:
            raise NotFound(f"{key} is gone")
        if replaces is not None and now != replaces.version:
            raise Stale(f"{key} was replaced")
    answer: Mapping[str, Any] = client.head_object(Bucket=bucket, Key=source)
    if quoted(answer["ETag"]) != stored.version:
        raise Stale(f"{stored.key} was replaced")
    return answer


def whole(
    client: Any,
    bucket: str,
    stored: StoredObject,
    source: str,
    key: str,
    replaces: StoredObject | None,
    metadata: Mapping[str, str] | None,
) -> tuple[str, Any]:
    """Copy by one request; the etag and the time of what is there now."""
    seen = look(client, bucket, stored, source, key, replaces)
    told = {} if metadata is None else _described(seen, metadata, key) | {"MetadataDirective": "REPLACE"}
    # Onto itself the condition of the source says it all.
    target = condition(replaces) if source != key else {}
    answer = client.copy_object(
        Bucket=bucket,
        Key=key,
        CopySource={"Bucket": bucket, "Key": source},
        CopySourceIfMatch=stored.version,
        **told,
        **target,
    )
    result = answer["CopyObjectResult"]
    if "ETag" not in result:  # of a copy onto itself some services tell nothing
        result = client.head_object(Bucket=bucket, Key=key)
    return quoted(result["ETag"]), result["LastModified"]


def start(
    client: Any,
    bucket: str,
    stored: StoredObject,
    source: str,
    key: str,
    replaces: StoredObject | None,
    metadata: Mapping[str, str] | None,
) -> str:
    """Begin a copy in parts; the name of the upload."""
    seen = look(client, bucket, stored, source, key, replaces)
    told = _described(seen, seen["Metadata"] if metadata is None else metadata, key)
    return str(client.create_multipart_upload(Bucket=bucket, Key=key, **told)["UploadId"])


def part_size(size: int) -> int:
    """Bytes of each part but the last, in whole MiB."""
    return max(LEAST_COPIED_PART, -(-size // MOST_PARTS // MIB) * MIB)


def part(
    client: Any,
    bucket: str,
    stored: StoredObject,
    source: str,
    key: str,
    upload: str,
    number: int,
    window: tuple[int, int],
) -> str:
    """Copy a window of the source; the etag of the part. R2 pins no version here: look again afterwards."""
    answer = client.upload_part_copy(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        PartNumber=number,
        CopySource={"Bucket": bucket, "Key": source},
        CopySourceIfMatch=stored.version,
        CopySourceRange=f"bytes={window[0]}-{window[1] - 1}",
    )
    return quoted(answer["CopyPartResult"]["ETag"])


def _described(seen: Mapping[str, Any], metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Parameters that describe the copy: other metadata, all else as the source has it."""
    kept = {name: seen[name] for name in _KEPT if seen.get(name)}
    return {"ContentType": content_type(key)} | kept | {"Metadata": dict(metadata)}


def _etag(client: Any, bucket: str, key: str) -> str | None:
    try:
        return quoted(client.head_object(Bucket=bucket, Key=key)["ETag"])
    except client.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
