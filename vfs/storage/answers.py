"""What an answer of an S3 service is worth: checks of every body, and errors as ours.

Checked of each ranged read: the status, Content-Range (start, end and total), the number of bytes, the etag.
Of an object read whole besides: the MD5 where the etag is one (single part, no other encryption), and
checksums of the whole object that the store sends along (CRC-64/NVME, CRC-32C, CRC-32, SHA-1, SHA-256).

What nobody can see: bytes that change on the way in a *part* of an object, over plain HTTP, beyond what the
checksums of TCP and Ethernet catch. TLS sees it. So `http://` endpoints are for loopback and tests.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
import zlib
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

import botocore.exceptions

from vfs.errors import BadBody, Denied, NotFound, ReelfsError, Stale, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage import sums
from vfs.storage.base import Body, Corrupt
from vfs.storage.signing import Answer

#: Seconds two clocks may differ: signatures are refused beyond a quarter of an hour.
MAX_SKEW = 600.0
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
#: Codes that mean "later", whatever the status says.
_LATER = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "TooManyRequests"})
#: Codes that mean "with these credentials, no", although AWS sends some of them with status 400.
_REFUSED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"})
#: Codes that mean "this header I do not know".
_UNKNOWN = frozenset({"", "NotImplemented", "InvalidArgument", "InvalidRequest", "UnsupportedArgument"})
#: Codes and statuses that may mean "ask in the region of the bucket", if they say which that is.
_MOVED_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_MOVED = frozenset({301, 302, 307, 308, 400})
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")
_REGION = re.compile(rb"<Region>([^<]{1,64})</Region>")
#: What can be the name of a region: it becomes part of a host name.
_REGION_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,7}")


_SUMS: Mapping[str, Callable[[Body], bytes]] = {
    "x-amz-checksum-crc64nvme": lambda body: sums.crc64nvme(body).to_bytes(8, "big"),
    "x-amz-checksum-crc32c": lambda body: sums.model("CRC32-ISCSI").calc(body).to_bytes(4, "big"),
    "x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}


class Elsewhere(StoreError):
    """The bucket is in another region."""

    def __init__(self, what: str, region: str) -> None:
        super().__init__(f"{what}: the bucket is in another region: set AWS_REGION={region}")
        self.region = region


class Unsaid(StoreError):
    """A HEAD was refused with status 400, which may be anything: its answer has no body to say what."""


def quoted(etag: str) -> str:
    """One spelling of an etag: some servers leave out the quotes in listings, or mark it weak."""
    return '"' + etag.removeprefix("W/").strip('"') + '"'


def is_suspect(answer: Answer, stored: StoredObject) -> bool:
    """The answer looks as if the object had been replaced, on a server that does not know If-Match."""
    if answer.status == 416:
        return True
    if answer.status not in (200, 206):
        return False
    if _has_other_etag(answer.headers, stored):
        return True
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    return match is not None and match[3] not in ("*", str(stored.size))


def check(answer: Answer, stored: StoredObject, offset: int, length: int) -> None:
    """Nothing but the bytes asked for passes. Raises what the answer means instead."""
    check_head(answer, stored, offset, length)
    check_body(answer, stored, offset, length)


def knows_no_sums(answer: Answer) -> bool:
    """The answer to a read that asked for a checksum refuses the question: it is newer than many services."""
    found = _CODE.search(bytes(answer.body))
    code = found[1].decode() if found else ""
    return answer.status == 501 or (answer.status == 400 and code in _UNKNOWN)


def check_head(answer: Answer, stored: StoredObject, offset: int, length: int) -> None:
    """What can be known before the body comes. Raises what the answer means instead."""
    headers, what = answer.headers, f"{stored.key}: bytes {offset}+{length}"
    if answer.status not in (200, 206):
        said = bytes(answer.body)
        code, region = (
            found[1].decode() if found else "" for found in (_CODE.search(said), _REGION.search(said))
        )
        raise refusal(answer.status, stored.key, headers, code=code, region=region, is_read=True)
    if _has_other_etag(headers, stored):
        raise BadBody(f"{what}: answered with another etag")
    if (given := headers.get("content-range")) is not None:
        match = _RANGE.fullmatch(given)
        if match is None or (int(match[1]), int(match[2])) != (offset, offset + length - 1):
            raise BadBody(f"{what}: answered with range {given!r}")
        if match[3] not in ("*", str(stored.size)):
            _check_encoding(headers, stored)
            raise BadBody(f"{what}: the object has {match[3]} bytes where {stored.size} are listed")
    elif answer.status == 206 or offset or length != stored.size:
        _check_encoding(headers, stored)
        raise BadBody(f"{what}: answered {answer.status} without a range")
    if answer.excess:
        _check_encoding(headers, stored)
        raise BadBody(f"{what}: more bytes came")


def check_body(answer: Answer, stored: StoredObject, offset: int, length: int) -> None:
    """The rest, once the body is here."""
    if answer.excess or len(answer.body) != length:
        _check_encoding(answer.headers, stored)
        came = "more" if answer.excess else len(answer.body)
        raise BadBody(f"{stored.key}: bytes {offset}+{length}: {came} bytes came")
    if length == stored.size:
        _check_whole(answer, stored)


def is_summed(answer: Answer, stored: StoredObject, length: int) -> bool:
    """Whether a checksum covers exactly these bytes: then none of them is right before all are here."""
    if length != stored.size:
        return False
    return _known_md5(answer, stored) is not None or any("-" not in answer.headers.get(n, "-") for n in _SUMS)


def _has_other_etag(headers: Mapping[str, str], stored: StoredObject) -> bool:
    """The answer names an etag, and it is not the pinned one."""
    return "etag" in headers and quoted(headers["etag"]) != stored.version


def _check_encoding(headers: Mapping[str, str], stored: StoredObject) -> None:
    """A body that does not fit, of an object said to be compressed: trying again will not help.

    R2 unpacks such objects on the way (for a client that asks for `identity`, as any reader of ranges has
    to), so that what comes is not what is stored and listed.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding not in ("identity", "aws-chunked", ""):
        raise StoreError(
            f"{stored.key} is stored with Content-Encoding {encoding} and its bytes come unpacked: store "
            "it without, or with Cache-Control: no-transform"
        )


def _check_whole(answer: Answer, stored: StoredObject) -> None:
    """Compare the checksums that are known of an object that was read whole."""
    headers = answer.headers
    known = _known_md5(answer, stored)
    if known is not None:
        digest = hashlib.md5(answer.body, usedforsecurity=False).hexdigest()
        if digest != known:
            raise Corrupt(f"{stored.key}: the bytes do not have the MD5 that is their etag")
    for name, compute in _SUMS.items():
        # `-N` after it: a checksum of the checksums of N parts, which the body alone does not give.
        given = headers.get(name, "-")
        if "-" not in given and base64.b64encode(compute(answer.body)).decode() != given:
            raise Corrupt(f"{stored.key}: the bytes do not have the checksum {name}")


def sum_of(told: str) -> int | None:
    """A checksum of 64 bits as headers tell it; None for one of parts (`-N`) or what is none."""
    try:
        value = base64.b64decode(told, validate=True)
    except ValueError:
        return None
    return int.from_bytes(value, "big") if len(value) == 8 else None


def _known_md5(answer: Answer, stored: StoredObject) -> str | None:
    """The MD5 of the whole object where its etag is one: of one part, not encrypted with other keys."""
    match, headers = _MD5.fullmatch(stored.version), answer.headers
    encrypted = "x-amz-server-side-encryption-customer-algorithm" in headers or headers.get(
        "x-amz-server-side-encryption", ""
    ).startswith("aws:kms")
    return match[1] if match is not None and not encrypted else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the store asks to wait; None when it does not. A date counts from the store's own clock, which
    the answer tells, too: this machine's may be another.
    """
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,6}(\.\d+)?", given):
        return float(given)
    until = _time_of(given)
    if until is None:
        return None
    now = _time_of(headers.get("date", ""))
    return max(0.0, until - (time.time() if now is None else now))


def _time_of(date: str) -> float | None:
    """Seconds since the epoch of a date as HTTP writes it; None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def refusal(
    status: int,
    key: str | None,
    headers: Mapping[str, str],
    *,
    code: str = "",
    region: str = "",
    is_read: bool = False,
    is_silent: bool = False,
) -> ReelfsError:
    """What an HTTP status other than success, and the code beside it, mean.

    key: what was asked for; None = the bucket. headers: of the answer, names in lower case. region: that its
    body names. is_silent: an answer to a HEAD, which has no body to name a code.
    """
    what = key if key is not None else "the bucket"
    if code == "NoSuchBucket":
        return no_bucket()
    if code in _LATER:
        return Unavailable(f"{what}: {code}", retry_after(headers))
    if status == 412:
        return Stale(f"{what} was replaced")
    if status == 404:
        return NotFound(f"no such object: {key}") if key is not None else no_bucket()
    region = headers.get("x-amz-bucket-region") or region
    if _REGION_NAME.fullmatch(region) and (
        code in _MOVED_CODES or (status in _MOVED and (not code or status != 400))
    ):
        return Elsewhere(what, region)
    if is_silent and status == 400:
        return Unsaid(f"{what}: HTTP 400")
    if status in (401, 403) or code in _REFUSED:  # an expired token is a 400 to AWS
        return Denied(
            f"{what}: the store refused the credentials ({code or f'HTTP {status}'}): "
            + (_clock_error(headers) or "check keys, scope and clock")
        )
    if status == 416 and is_read:
        return BadBody(f"{what}: the store has fewer bytes than it listed")
    if status in (408, 425, 429) or status >= 500:
        return Unavailable(f"{what}: HTTP {status}", retry_after(headers))
    return StoreError(f"{what}: HTTP {status}")


def _clock_error(headers: Mapping[str, str]) -> str | None:
    """What to mend when this machine's clock is why a signature counts as too old or from the future."""
    theirs = _time_of(headers.get("date", ""))
    if theirs is None:
        return None
    behind = theirs - time.time()
    if abs(behind) < MAX_SKEW:
        return None
    minutes = round(abs(behind) / 60)
    return f"the clock of this machine is {minutes} minutes {'slow' if behind > 0 else 'fast'}, set it"


def no_bucket() -> StoreError:
    """Not NotFound: a path below is not absent, it could not be asked for."""
    return StoreError("no such bucket: check the name, the account and the endpoint")


def translated(error: Exception, key: str | None) -> ReelfsError:
    """An exception of botocore as one of ours."""
    if isinstance(error, botocore.exceptions.ClientError):
        about = error.response.get("ResponseMetadata", {})
        told = error.response.get("Error", {})
        code = str(told.get("Code", ""))
        is_silent = code.isdigit()  # the status: there was no body
        headers = {name.lower(): value for name, value in about.get("HTTPHeaders", {}).items()}
        return refusal(
            about.get("HTTPStatusCode", 0),
            key,
            headers,
            code="" if is_silent else code,
            region=str(told.get("Region", "")),
            is_silent=is_silent,
        )
    if isinstance(
        error, botocore.exceptions.NoCredentialsError | botocore.exceptions.CredentialRetrievalError
    ):
        return Denied(f"no credentials: {short(error)}")
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return StoreError(f"{key or 'the bucket'}: {short(error)}")  # asked again it would be no better
    return Unavailable(short(error))


def short(error: BaseException) -> str:
    """One line without object addresses."""
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>:? ?", "", str(error))
    return text.splitlines()[0][:300] if text else type(error).__name__
