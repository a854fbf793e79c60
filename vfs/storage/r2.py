"""`r2://` and `s3://`: a bucket through boto3; ranged reads through `signing`, at less than half the cost.

Every body is checked (`answers`). Calls block and run in threads (`calls`), reads under one limit and
metadata under another.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import botocore.exceptions
import trio

from vfs.errors import BadBody, Denied, NotFound, Stale, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage import r2copy, r2write
from vfs.storage.access import Access, Target, connect
from vfs.storage.answers import (
    Unsaid,
    check_body,
    check_head,
    is_summed,
    is_suspect,
    knows_no_sums,
    quoted,
    short,
    sum_of,
    translated,
)
from vfs.storage.arriving import Arriving, Intake
from vfs.storage.base import MAX_KEY, Body, Corrupt, ObjectDetails, Page, Part
from vfs.storage.calls import Calls
from vfs.storage.connections import NO_ANSWER, TROUBLE, Transfer
from vfs.tasks import gather

T = TypeVar("T")

#: Seconds a presigned URL may be valid: S3's and R2's limit.
MAX_EXPIRES = 7 * 24 * 3600

#: An object that came damaged once is read whole from then on, when it is no larger than this.
DOUBTED_BYTES = 8 << 20
MAX_DOUBTED = 1000
#: Seconds for dropping the parts of a copy that failed; what stays ends with the service's own clearing.
ABORT_SECONDS = 5.0


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
    return S3Store(connect(Target(scheme, bucket, prefix, deadline, max_connections, environ)))


class S3Store:
    """One prefix of one bucket."""

    def __init__(self, access: Access) -> None:
        target = access.target
        self._bucket = target.bucket
        self._prefix = f"{target.prefix}/" if target.prefix else ""
        self._scheme = target.scheme
        self._calls = Calls(access, self.url)
        self._besides: Counter[str] = Counter()
        self._doubted: OrderedDict[tuple[str, str], None] = OrderedDict()
        #: Until the service turns out not to know the question.
        self._asks_sums = True

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
        if not self._is_possible(key):
            raise NotFound(f"no such object: {key!r}")

        def ask(client: Any) -> ObjectDetails:
            answer = client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            headers = answer["ResponseMetadata"]["HTTPHeaders"]
            return ObjectDetails(
                _described(key, answer["ContentLength"], answer["ETag"], answer["LastModified"]),
                {name.lower(): value for name, value in headers.items()},
                {name.lower(): value for name, value in answer["Metadata"].items()},
            )

        return await self._ask(key, ask)

    async def checksum(self, stored: StoredObject) -> int | None:
        """See `base.KeepsSums`."""

        def ask(client: Any) -> str | None:
            answer = client.head_object(
                Bucket=self._bucket,
                Key=self._prefix + stored.key,
                IfMatch=stored.version,
                ChecksumMode="ENABLED",
            )
            told: str | None = answer.get("ChecksumCRC64NVME")
            return told

        told = await self._ask(stored.key, ask) if self._asks_sums else None
        return None if told is None else sum_of(told)

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page, in whatever order the store gives it."""
        if not self._is_possible(prefix + "x"):
            return Page(())
        parameters: dict[str, Any] = {"Prefix": self._prefix + prefix, "MaxKeys": limit}
        if delimiter:
            parameters["Delimiter"] = delimiter
        if token is not None:
            parameters["ContinuationToken"] = token
        page = await self._ask(None, lambda client: self._page(client, parameters))
        # Who lists will read, and what is read comes by several connections.
        trio.lowlevel.spawn_system_task(self._calls.connect_ahead)
        return page

    def _page(self, client: Any, parameters: Mapping[str, Any]) -> Page:
        # boto3 asks for `encoding-type=url` by itself, and decodes: any key comes as it is.
        answer = client.list_objects_v2(Bucket=self._bucket, **parameters)
        cut, marker = len(self._prefix), None
        if "Delimiter" in parameters and parameters["Prefix"].endswith("/"):
            marker = parameters["Prefix"]
        more = answer.get("IsTruncated", False)
        if more and not answer.get("NextContinuationToken"):
            raise BadBody("a page of a listing that says there are more, but not where")
        return Page(
            tuple(
                _described(item["Key"][cut:], item["Size"], item["ETag"], item["LastModified"])
                for item in answer.get("Contents", ())
                if item["Key"] != marker
            ),
            tuple(item["Prefix"][cut:] for item in answer.get("CommonPrefixes", ())),
            answer["NextContinuationToken"] if more else None,
        )

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        """Exactly these bytes of exactly this version, as they come, or at once where a checksum covers them.

        On a server that does not know If-Match, an answer that looks replaced costs a HEAD to be sure. Of an
        object that came damaged, parts (as the kernel asks for after an error) are cut from a checked whole.
        """
        if (stored.key, stored.version) in self._doubted and length < stored.size <= DOUBTED_BYTES:
            return memoryview(await self.read(stored, 0, stored.size))[offset : offset + length]
        # In time: what an attempt that was given up brings goes nowhere.
        intake = (arriving or Arriving(length)).begin()
        try:
            return await self._calls.run(
                self._calls.reading,
                lambda access, transfer: self._get(access, stored, offset, length, intake, transfer),
            )
        except _Suspect as suspect:
            self._besides["head"] += 1
            now = (await self.head(stored.key)).object
            if (now.version, now.size) != (stored.version, stored.size):
                raise Stale(f"{stored.key} was replaced") from None
            raise BadBody(str(suspect)) from None

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store an object by one PUT, under the condition. Its time is that of the answer."""
        etag, modified = await self._write(
            key, replaces, lambda c, k: r2write.put(c, self._bucket, k, body, replaces, metadata)
        )
        return _described(key, len(body), etag, modified)

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Copy by one request, or in parts where it is too large for one. See `r2copy` for the conditions."""
        if not self._is_possible(stored.key):
            raise NotFound(f"no such object: {stored.key!r}")
        if stored.size > r2copy.MOST_COPIED:
            return await self._copy_in_parts(stored, key, replaces, metadata)
        what = (stored, self._prefix + stored.key)
        etag, modified = await self._write(
            key, replaces, lambda c, k: r2copy.whole(c, self._bucket, *what, k, replaces, metadata)
        )
        return _described(key, stored.size, etag, modified)

    async def _copy_in_parts(
        self,
        stored: StoredObject,
        key: str,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None,
    ) -> StoredObject:
        """R2 pins no part to a version: the source is looked at before and after all of them."""
        what, step = (stored, self._prefix + stored.key), r2copy.part_size(stored.size)
        upload = await self._write(
            key, replaces, lambda c, k: r2copy.start(c, self._bucket, *what, k, replaces, metadata)
        )

        async def one(number: int, window: tuple[int, int]) -> None:
            etag = await self._write(
                key, None, lambda c, k: r2copy.part(c, self._bucket, *what, k, upload, number, window)
            )
            parts.append(Part(number, etag))

        parts: list[Part] = []
        try:
            windows = [(at, min(at + step, stored.size)) for at in range(0, stored.size, step)]
            await gather(partial(one, number, window) for number, window in enumerate(windows, 1))
            if (await self.head(stored.key)).object.version != stored.version:
                raise Stale(f"{stored.key} was replaced")
            parts.sort(key=lambda part: part.number)
            return await self.complete_upload(key, upload, parts, replaces=replaces)
        except BaseException:
            with trio.move_on_after(ABORT_SECONDS, shield=True), contextlib.suppress(Exception):
                await self.abort_upload(key, upload)
            raise

    async def delete(self, stored: StoredObject) -> None:
        """Remove the object if it has this version. R2 knows no condition here: it is looked at just before,
        and a version that comes between the look and the delete is lost. (The condition is sent: others do.)
        """
        now = (await self.head(stored.key)).object
        if now.version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        await self._write(stored.key, stored, lambda c, k: r2write.delete(c, self._bucket, k, stored))

    async def start_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload in parts."""
        return await self._write(key, None, lambda c, k: r2write.start(c, self._bucket, k, metadata))

    async def put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Send a part."""
        return await self._write(
            key, None, lambda c, k: r2write.part(c, self._bucket, k, upload, number, body)
        )

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[Part], *, replaces: StoredObject | None
    ) -> StoredObject:
        """Join the parts."""
        etag = await self._write(
            key, replaces, lambda c, k: r2write.complete(c, self._bucket, k, upload, parts, replaces)
        )
        return await self._now(key, etag)

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload."""
        with contextlib.suppress(NotFound):
            await self._write(
                key,
                None,
                lambda c, k: c.abort_multipart_upload(Bucket=self._bucket, Key=k, UploadId=upload),
            )

    async def uploads(self, prefix: str = "") -> Mapping[str, str]:
        """Uploads under way."""
        whole, cut = self._prefix + prefix, len(self._prefix)
        found = await self._ask(None, lambda client: r2write.under_way(client, self._bucket, whole))
        return {name: key[cut:] for name, key in found.items()}

    async def _write(self, key: str, replaces: StoredObject | None, call: Callable[[Any, str], T]) -> T:
        if not self._is_possible(key):
            raise StoreError(f"{key!r} cannot be a key: {MAX_KEY} bytes of UTF-8 at most, with the prefix")
        try:
            return await self._ask(key, lambda client: call(client, self._prefix + key))
        except (NotFound, Stale) as error:
            if isinstance(error, Stale) and replaces is not None:
                await self.head(key)  # R2 says the same of what is gone: then NotFound
            raise r2write.refused(error, key, replaces) from None

    async def _now(self, key: str, etag: str) -> StoredObject:
        """What was just stored, as a listing will describe it. Raises Stale when it was replaced already."""
        stored = (await self.head(key)).object
        if stored.version != etag:
            raise Stale(f"{key} was stored, and replaced at once")
        return stored

    def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
        """A URL that reads or stores the object for a while without credentials, for whoever has it."""
        if not self._is_possible(key):
            return None
        url: str = self._calls.access.client.generate_presigned_url(
            "put_object" if put else "get_object",
            Params={"Bucket": self._bucket, "Key": self._prefix + key},
            ExpiresIn=max(1, min(expires, MAX_EXPIRES)),
        )
        return url

    def count_in(self, requests: Counter[str]) -> None:
        """See `base.AsksBesides`: the HEAD after an answer that looks replaced, the GET after a HEAD that was
        refused without a word.
        """
        self._besides = requests

    async def aclose(self) -> None:
        """Close connections."""
        await self._calls.aclose()

    async def renew(self) -> None:
        """Take up the credentials that are given now. Raises ConfigError, Denied: the old ones stay."""
        await self._calls.renew()

    # -- in threads -------------------------------------------------------------------------------------

    def _get(
        self,
        access: Access,
        stored: StoredObject,
        offset: int,
        length: int,
        intake: Intake,
        transfer: Transfer,
    ) -> Body:
        """One GET and the checks of what came; what kept it from being answered as an error of ours."""
        key = self._prefix + stored.key
        try:
            summed = length == stored.size and self._asks_sums
            with access.gets.get(key, offset, length, stored.version, transfer, whole=summed) as incoming:
                answer = incoming.head
                if summed and knows_no_sums(answer):
                    self._asks_sums = False
                    raise Unavailable(f"{stored.key}: HTTP {answer.status} to the question for its checksum")
                check_head(answer, stored, offset, length)
                early = incoming.sized and not is_summed(answer, stored, length)
                answer = incoming.fill(intake, early=early)
                check_body(answer, stored, offset, length)
        except TROUBLE as error:
            raise Unavailable(f"{stored.key}: {short(error)}") from error
        except botocore.exceptions.BotoCoreError as error:
            raise translated(error, stored.key) from error
        except Denied:
            access.gets.forget(key)
            raise
        except Corrupt:
            self._doubt(stored)
            raise
        except BadBody as error:
            if is_suspect(answer, stored):
                raise _Suspect(str(error)) from error
            raise
        return answer.body

    def _doubt(self, stored: StoredObject) -> None:
        """Remember an object whose bytes came damaged: only a whole of it can be checked."""
        self._doubted[stored.key, stored.version] = None
        while len(self._doubted) > MAX_DOUBTED:
            self._doubted.popitem(last=False)

    async def _ask(self, key: str | None, function: Callable[[Any], T]) -> T:
        """A call of boto3, with errors of ours. key: what a 404 is about; None = the bucket."""

        def call(access: Access, transfer: Transfer) -> T:
            try:
                with access.connections.used_by(transfer):
                    return function(access.client)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                raise translated(error, key) from error
            except NO_ANSWER as error:
                raise Unavailable(f"{key or 'the bucket'}: {short(error)}") from error
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise BadBody(f"{key or 'listing'}: an answer without {short(error)}") from error

        try:
            return await self._calls.run(self._calls.asking, call)
        except Unsaid:
            if key is None:
                raise
            self._besides["get"] += 1
            await self._ask(key, lambda client: self._why(client, self._prefix + key))
            raise

    def _why(self, client: Any, key: str) -> None:
        """Raise what a GET of an object is refused with: a HEAD that is has no words for it."""
        client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0")["Body"].close()

    def _is_possible(self, key: str) -> bool:
        """False for what cannot be a key: no request is needed to know that there is none."""
        try:
            size = len((self._prefix + key).encode())
        except UnicodeEncodeError:
            return False  # a file name that is not UTF-8
        return bool(key) and size <= MAX_KEY


class _Suspect(BadBody):
    """A body of what may be another version."""


def _described(key: str, size: int, etag: str, modified: Any) -> StoredObject:
    # Whole seconds: a HEAD knows no more, and the same version must look the same from a listing.
    return StoredObject(key, size, quoted(etag), int(modified.timestamp()) * 10**9)


__all__ = ["S3Store", "open_bucket"]
