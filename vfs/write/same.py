"""Whether what a store has is what was sent to it, or what was to be replaced.

An answer may be lost, a crash may come before it is noted; and a version may change though no byte does:
whoever changes the metadata of an object that came in parts copies it, and its etag is then another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import trio

from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, ObjectDetails, Store
from vfs.write.attributes import Attributes
from vfs.write.draft import Draft

#: Bytes that are fetched to be compared at most, where the etag does not tell.
MAX_COMPARED = 64 << 20
#: Sizes of parts that programs upload by, MiB: boto3 and the AWS tools, rclone, s3fs and others.
COMMON_PARTS = (8, 5, 10, 16, 32, 64)


async def is_content(store: Store, now: ObjectDetails, content: Draft | StoredObject | str | None) -> bool:
    """Whether what is there has just this content (of a link: its target; None: no bytes)."""
    if content is None or isinstance(content, str):
        return now.object.size == 0 and Attributes.of(now.metadata).target == content
    if now.object.size != content.size:
        return False
    if isinstance(content, Draft) and now.object.version in await trio.to_thread.run_sync(_etags, content):
        return True
    if now.object.size > MAX_COMPARED and store.remote:
        return False
    for offset in range(0, content.size, upload.LEAST_PART):
        length = min(upload.LEAST_PART, content.size - offset)
        theirs = await store.read(now.object, offset, length)
        if isinstance(content, Draft):
            ours: Body = await trio.to_thread.run_sync(content.read, offset, length)
        else:
            ours = await store.read(content, offset, length)
        if theirs != ours:
            return False
    return True


def is_told(now: ObjectDetails | None, size: int, metadata: Mapping[str, str]) -> StoredObject | None:
    """What is there, if it was given just these attributes: by a request that was never answered."""
    is_ours = now is not None and now.object.size == size and "mtime" in metadata
    return now.object if now is not None and is_ours and dict(now.metadata) == dict(metadata) else None


async def is_version(store: Store, now: StoredObject, before: StoredObject) -> bool:
    """Whether an object has the bytes that another version of it had, as far as that tells: by an etag
    that is an MD5 of them, or of their parts. False where that cannot be known.
    """
    if not store.remote or now.size != before.size or now.size > MAX_COMPARED:
        return False
    if "-" not in before.version and "-" not in now.version:
        return False  # one MD5 each, and they differ: so do the bytes
    body = bytearray()
    for offset in range(0, now.size, upload.LEAST_PART):
        body += await store.read(now, offset, min(upload.LEAST_PART, now.size - offset))
    return before.version in await trio.to_thread.run_sync(_etags_of, bytes(body))


def _etags(draft: Draft) -> set[str]:
    """What stores call this content: its MD5, or that of the parts it would be sent in."""
    step = upload.part_size(draft.size)
    whole, parts = hashlib.md5(usedforsecurity=False), []
    for offset in range(0, draft.size, step):
        body = draft.read(offset, min(step, draft.size - offset))
        whole.update(body)
        parts.append(hashlib.md5(body, usedforsecurity=False).digest())
    return {f'"{whole.hexdigest()}"', upload.multipart_etag(parts)}


def _etags_of(body: bytes) -> set[str]:
    """What stores may call these bytes, in whatever parts of a common size they came."""
    found = {f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
    for step in (size << 20 for size in COMMON_PARTS):
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        found.add(upload.multipart_etag([hashlib.md5(one, usedforsecurity=False).digest() for one in parts]))
    return found
