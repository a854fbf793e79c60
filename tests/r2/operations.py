"""What R2 answers to S3's operations, where it matters to a client. Written from what is known of R2.

Differences from AWS that are imitated: keys are the same in NFC; pages of listings are in no order; parts of
an upload but the last have one size, which Complete checks (10048); a Complete whose condition fails loses
the parts; DeleteObject ignores If-Match; UploadPartCopy ignores conditions; a copy's target is conditional by
`cf-copy-destination-if-*` alone; bodies in `aws-chunked` are refused; more than one write a second to a key
is 429 (10058), where that is switched on. Signatures are not verified: there has to be one, and a presigned
URL has to be young enough.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import unquote
from xml.sax.saxutils import escape

import anycrc

from tests.r2.admission import check_admission
from tests.r2.answers import child, elements, headers_of, iso, listed, result, text, xml
from tests.r2.rules import (
    check_parts,
    check_signed,
    check_write,
    cut,
    failed,
    kept,
    matches,
    metadata_of,
    window_of,
)
from tests.r2.state import Part, Piece, State, Stored, Upload, identity
from tests.r2.wire import Answer, Refusal, Request, Window

MOST_COPIED = 5 << 30
_CRC64 = anycrc.Model("CRC64-NVME")


class Service:
    """The operations over a state. rate: refuse a second write to a key within a second. etags: `md5`, or
    `random` as R2 says of them nothing that a client may rely on. sums: tell the CRC-64/NVME of an object
    that is read whole, to who asks for it; `unknown`: refuse the question. The others: see `admission`.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.options: dict[str, object] = {"rate": False, "etags": "md5", "sums": True}
        self.options |= {"region": "", "refuse": "redirect", "token": ""}
        self._wrote: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def operation(self, request: Request) -> str:
        """Which one a request is, by its S3 name."""
        query, method = request.query, request.method
        if not request.bucket:
            return "ListBuckets"
        if not request.raw_key:
            if method == "GET":
                return "ListMultipartUploads" if "uploads" in query else "ListObjectsV2"
            if method == "POST" and "delete" in query:
                return "DeleteObjects"
            return {"PUT": "CreateBucket", "HEAD": "HeadBucket"}.get(method, "Unknown")
        if method == "PUT":
            copies = "x-amz-copy-source" in request.headers
            if "partNumber" in query:
                return "UploadPartCopy" if copies else "UploadPart"
            return "CopyObject" if copies else "PutObject"
        if method == "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        if method == "DELETE":
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
        if method == "GET" and "uploadId" in query:
            return "ListParts"
        return {"GET": "GetObject", "HEAD": "HeadObject"}.get(method, "Unknown")

    def answer(self, operation: str, request: Request) -> Answer:
        """Do it. Raises Refusal."""
        check_signed(request)
        check_admission(request, self.options)
        encoding = request.headers.get("content-encoding", "")
        if "aws-chunked" in encoding or "x-amz-trailer" in request.headers:
            raise Refusal(501, "NotImplemented", "STREAMING-UNSIGNED-PAYLOAD-TRAILER not implemented")
        handlers: Mapping[str, Callable[[Request], Answer]] = {
            "ListBuckets": self._buckets,
            "CreateBucket": self._create_bucket,
            "HeadBucket": self._head_bucket,
            "ListObjectsV2": self._list,
            "HeadObject": self._get,
            "GetObject": self._get,
            "PutObject": self._put,
            "CopyObject": self._copy,
            "DeleteObject": self._delete,
            "DeleteObjects": self._delete_many,
            "CreateMultipartUpload": self._start,
            "UploadPart": self._part,
            "UploadPartCopy": self._part_copy,
            "CompleteMultipartUpload": self._complete,
            "AbortMultipartUpload": self._abort,
            "ListMultipartUploads": self._uploads,
            "ListParts": self._parts,
        }
        if operation not in handlers:
            raise Refusal(501, "NotImplemented", "A header or query you provided is not implemented.")
        if request.bucket and operation != "CreateBucket" and request.bucket not in self.state.buckets():
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.", 10006)
        return handlers[operation](request)

    # -- buckets and listings ---------------------------------------------------------------------------

    def _buckets(self, request: Request) -> Answer:
        names = "".join(f"<Bucket><Name>{escape(name)}</Name></Bucket>" for name in self.state.buckets())
        return xml(f"<ListAllMyBucketsResult><Buckets>{names}</Buckets></ListAllMyBucketsResult>")

    def _create_bucket(self, request: Request) -> Answer:
        request.skip()
        if not self.state.make_bucket(request.bucket):
            raise Refusal(409, "BucketAlreadyOwnedByYou", "The bucket exists, and is yours.", 10004)
        return Answer(headers={"Location": f"/{request.bucket}"})

    def _head_bucket(self, request: Request) -> Answer:
        return Answer()

    def _list(self, request: Request) -> Answer:
        query = request.query
        prefix, delimiter = identity(query.get("prefix", "")), query.get("delimiter", "")
        limit = min(int(query.get("max-keys", "1000")), 1000)
        found: dict[str, Stored | None] = {}
        for stored in self.state.all(request.bucket):
            key = stored.key if stored.key.startswith(prefix) else identity(stored.key)
            if not key.startswith(prefix) or key <= query.get("start-after", ""):
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            found[key if cut < 0 else key[: cut + len(delimiter)]] = stored if cut < 0 else None
        # In no order that means anything, but the same on every page.
        order = sorted(
            (hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), name) for name in found
        )
        after = query.get("continuation-token", "")
        rest = [(mark, name) for mark, name in order if mark > after]
        page = rest[:limit]
        coded = query.get("encoding-type") == "url"
        told = [
            f"<Name>{escape(request.bucket)}</Name><Prefix>{text(query.get('prefix', ''), coded)}</Prefix>",
            f"<MaxKeys>{limit}</MaxKeys><KeyCount>{len(page)}</KeyCount>",
            f"<IsTruncated>{'true' if len(rest) > limit else 'false'}</IsTruncated>",
            "<EncodingType>url</EncodingType>" if coded else "",
            f"<NextContinuationToken>{page[-1][0]}</NextContinuationToken>" if len(rest) > limit else "",
        ]
        for _, name in page:
            if (stored_here := found[name]) is None:
                told.append(f"<CommonPrefixes><Prefix>{text(name, coded)}</Prefix></CommonPrefixes>")
            else:
                told.append(f"<Contents>{listed(stored_here, name, coded)}</Contents>")
        return xml(f"<ListBucketResult>{''.join(told)}</ListBucketResult>")

    # -- objects ----------------------------------------------------------------------------------------

    def _get(self, request: Request) -> Answer:
        stored, headers = self._there(request.bucket, request.key), request.headers
        if self.options["sums"] == "unknown" and "x-amz-checksum-mode" in headers:
            raise Refusal(501, "NotImplemented", "Header 'x-amz-checksum-mode' not implemented")
        if "if-match" in headers and not matches(headers["if-match"], stored):
            raise failed()
        told = headers_of(stored)
        if "if-none-match" in headers and matches(headers["if-none-match"], stored):
            return Answer(304, told)
        window = window_of(headers.get("range", ""), stored.size)
        if window is None and self.options["sums"] and headers.get("x-amz-checksum-mode") == "ENABLED":
            told |= {"x-amz-checksum-crc64nvme": self._sum(stored), "x-amz-checksum-type": "FULL_OBJECT"}
        if request.method == "HEAD":
            return Answer(200, told | {"Content-Length": str(stored.size)})
        if window is None:
            return Answer(200, told, self._windows(stored, 0, stored.size))
        start, stop = window
        told["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        return Answer(206, told, self._windows(stored, start, stop))

    def _there(self, bucket: str, key: str) -> Stored:
        stored = self.state.get(bucket, key)
        if stored is None:
            raise Refusal(404, "NoSuchKey", "The specified key does not exist.", 10007)
        return stored

    def _windows(self, stored: Stored, start: int, stop: int) -> tuple[Window, ...] | bytes:
        """The files that hold these bytes."""
        pieces = cut(stored.pieces, start, stop)
        return tuple(Window(self.state.path(p.blob), p.offset, p.size) for p in pieces) or b""

    def _sum(self, stored: Stored) -> str:
        crc = 0
        for piece in stored.pieces:
            with self.state.path(piece.blob).open("rb") as file:
                file.seek(piece.offset)
                crc = _CRC64.calc(file.read(piece.size), crc)
        return base64.b64encode(crc.to_bytes(8, "big")).decode()

    def _put(self, request: Request) -> Answer:
        key, metadata = request.key, metadata_of(request.headers)
        if "content-length" not in request.headers:
            raise Refusal(411, "MissingContentLength", "You must provide the Content-Length.", 10033)
        size, digest, pieces = self._saved(request)
        stored = Stored(
            *(key, size, self._etag(digest), time.time()), kept(request.headers), metadata, pieces
        )
        self._write(request.bucket, stored, lambda now: check_write(request.headers, now))
        return Answer(headers={"ETag": f'"{stored.etag}"'})

    def _saved(self, request: Request) -> tuple[int, str, tuple[Piece, ...]]:
        """The body as a blob of its own."""
        blob, descriptor = self.state.new_blob()
        try:
            size, digest = request.save(descriptor)
            told = request.headers.get("content-md5")
            if told and base64.b64encode(bytes.fromhex(digest)).decode() != told:
                raise Refusal(400, "BadDigest", "The Content-MD5 is not that of the body.", 10014)
        except BaseException:
            self.state.drop_blob(blob)
            raise
        finally:
            os.close(descriptor)
        return size, digest, (Piece(blob, 0, size),) if size else ()

    def _etag(self, digest: str) -> str:
        return digest if self.options["etags"] == "md5" else secrets.token_hex(20)

    def _write(self, bucket: str, stored: Stored, check: Callable[[Stored | None], None]) -> None:
        try:
            self._paced(bucket, stored.key)
            self.state.put(bucket, stored, check)
        except BaseException:
            for piece in stored.pieces:
                self.state.drop_blob(piece.blob)
            raise

    def _paced(self, bucket: str, key: str) -> None:
        """One write a second and key."""
        if not self.options["rate"]:
            return
        name, now = (bucket, identity(key)), time.monotonic()
        with self._lock:
            if now - self._wrote.get(name, -1.0) < 1.0:
                raise Refusal(
                    429, "TooManyRequests", "Reduce your concurrent request rate for the same object.", 10058
                )
            self._wrote[name] = now

    def _copy(self, request: Request) -> Answer:
        source, headers = self._source(request), request.headers
        if "x-amz-copy-source-if-match" in headers and not matches(
            headers["x-amz-copy-source-if-match"], source
        ):
            raise failed()
        if source.size > MOST_COPIED:
            raise Refusal(400, "EntityTooLarge", "The source is larger than what one copy may be.", 10010)
        directive = headers.get("x-amz-metadata-directive", "COPY").upper()
        headers_kept, metadata = source.headers, source.metadata
        if directive == "REPLACE":
            headers_kept, metadata = kept(headers), metadata_of(headers)
        elif directive == "MERGE":
            headers_kept, metadata = headers_kept | kept(headers), metadata | metadata_of(headers)
        key = request.key
        if directive == "COPY" and identity(key) == identity(source.key):
            raise Refusal(400, "InvalidRequest", "This copy onto itself changes nothing.")
        copied = replace(source, key=key, modified=time.time(), headers=headers_kept, metadata=metadata)
        if self.options["etags"] != "md5":
            copied = replace(copied, etag=self._etag(""))
        target = {
            name.removeprefix("cf-copy-destination-"): value
            for name, value in headers.items()
            if name.startswith("cf-copy-destination-if-")
        }
        self._write(request.bucket, copied, lambda now: check_write(target, now))
        return xml(f"<CopyObjectResult>{result(copied.etag, copied.modified)}</CopyObjectResult>")

    def _source(self, request: Request) -> Stored:
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        try:
            return self._there(bucket, key)
        except KeyError:
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.", 10006) from None

    def _delete(self, request: Request) -> Answer:
        self.state.remove(request.bucket, request.key)
        return Answer(204)

    def _delete_many(self, request: Request) -> Answer:
        told = []
        for element in elements(request.told(), "Object"):
            key = child(element, "Key")
            self.state.remove(request.bucket, key)
            told.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return xml(f"<DeleteResult>{''.join(told)}</DeleteResult>")

    # -- uploads in parts -------------------------------------------------------------------------------

    def _start(self, request: Request) -> Answer:
        request.skip()
        headers, metadata = kept(request.headers), metadata_of(request.headers)
        name = self.state.start(request.bucket, request.key, headers, metadata)
        told = f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
        return xml(
            f"<InitiateMultipartUploadResult>{told}<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        )

    def _upload(self, request: Request) -> Upload:
        name = request.query.get("uploadId", "")
        try:
            upload = self.state.upload(name)
        except KeyError:
            upload = None
        if upload is None or identity(upload.key) != identity(request.key):
            raise Refusal(404, "NoSuchUpload", "The specified multipart upload does not exist.", 10024)
        return upload

    def _number(self, request: Request) -> int:
        number = int(request.query["partNumber"])
        if not 1 <= number <= 10_000:
            raise Refusal(400, "InvalidArgument", "Part number must be between 1 and 10000.")
        return number

    def _part(self, request: Request) -> Answer:
        upload, number = self._upload(request), self._number(request)
        size, digest, pieces = self._saved(request)
        return Answer(headers={"ETag": f'"{self._keep_part(upload, number, digest, size, pieces).etag}"'})

    def _part_copy(self, request: Request) -> Answer:
        upload, number, source = self._upload(request), self._number(request), self._source(request)
        window = window_of(request.headers.get("x-amz-copy-source-range", ""), source.size)
        start, stop = window or (0, source.size)
        pieces = cut(source.pieces, start, stop)
        digest = hashlib.md5(usedforsecurity=False)
        for piece in pieces:
            with self.state.path(piece.blob).open("rb") as file:
                file.seek(piece.offset)
                digest.update(file.read(piece.size))
        part = self._keep_part(upload, number, digest.hexdigest(), stop - start, pieces)
        return xml(f"<CopyPartResult>{result(part.etag, part.modified)}</CopyPartResult>")

    def _keep_part(
        self, upload: Upload, number: int, digest: str, size: int, pieces: tuple[Piece, ...]
    ) -> Part:
        part = Part(number, digest, size, time.time(), pieces)
        try:
            self.state.put_part(upload.name, part)
        except KeyError:
            for piece in pieces:
                self.state.drop_blob(piece.blob)
            raise Refusal(
                404, "NoSuchUpload", "The specified multipart upload does not exist.", 10024
            ) from None
        return part

    def _complete(self, request: Request) -> Answer:
        told = request.told()
        upload = self._upload(request)
        parts: list[Part] = []
        for element in sorted(elements(told, "Part"), key=lambda e: int(child(e, "PartNumber"))):
            part = upload.parts.get(int(child(element, "PartNumber")))
            if part is None or part.etag != child(element, "ETag").strip('"'):
                raise Refusal(400, "InvalidPart", "A part could not be found, or has another ETag.", 10025)
            parts.append(part)
        check_parts(parts)
        digests = b"".join(bytes.fromhex(part.etag) for part in parts)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        stored = Stored(
            upload.key,
            sum(part.size for part in parts),
            etag if self.options["etags"] == "md5" else f"{secrets.token_hex(20)}-{len(parts)}",
            time.time(),
            upload.headers,
            upload.metadata,
            tuple(piece for part in parts for piece in part.pieces),
        )
        self._paced(request.bucket, upload.key)
        try:
            self.state.complete(upload.name, stored, lambda now: check_write(request.headers, now))
        except KeyError:
            raise Refusal(
                404, "NoSuchUpload", "The specified multipart upload does not exist.", 10024
            ) from None
        about = f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(upload.key)}</Key>"
        return xml(
            f"<CompleteMultipartUploadResult>{about}<ETag>&quot;{stored.etag}&quot;</ETag>"
            "</CompleteMultipartUploadResult>"
        )

    def _abort(self, request: Request) -> Answer:
        self._upload(request)
        self.state.drop(request.query["uploadId"])
        return Answer(204)

    def _uploads(self, request: Request) -> Answer:
        prefix, coded = request.query.get("prefix", ""), request.query.get("encoding-type") == "url"
        told = "".join(
            f"<Upload><Key>{text(up.key, coded)}</Key><UploadId>{up.name}</UploadId>"
            f"<Initiated>{iso(up.began)}</Initiated></Upload>"
            for up in self.state.uploads(request.bucket)
            if up.key.startswith(prefix)
        )
        kind = "<EncodingType>url</EncodingType>" if coded else ""
        return xml(
            f"<ListMultipartUploadsResult>{kind}<IsTruncated>false</IsTruncated>{told}"
            "</ListMultipartUploadsResult>"
        )

    def _parts(self, request: Request) -> Answer:
        told = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><Size>{part.size}</Size>"
            f"{result(part.etag, part.modified)}</Part>"
            for _, part in sorted(self._upload(request).parts.items())
        )
        return xml(f"<ListPartsResult><IsTruncated>false</IsTruncated>{told}</ListPartsResult>")
