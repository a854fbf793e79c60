"""The Store protocol: what reelfs needs of a place that holds objects.

Keys are text below the mounted prefix (the store adds and strips its own prefix). Every method raises
the errors of `vfs.errors` and nothing else: NotFound, Denied, Stale, Unavailable, BadBody, StoreError.
A store does not retry: `guard.GuardedStore` does, within a deadline.

A key that ends in "/" is a folder marker: `put("x/", b"", replaces=None)` makes an empty folder, which its
parent lists as the prefix `x/`. In a bucket it is an empty object, as consoles and other mounts make them; in
a folder it is a folder. A listing with a delimiter does not show the marker of the prefix itself, one without
shows them all.

Metadata is the user's text by name. Names with a meaning in a folder (see `localmeta`) and, by agreement, in
a bucket: `mtime` (seconds since the epoch, decimal), `mode` (octal), `uid`, `gid`, `symlink-target`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vfs.errors import BadBody
from vfs.spans import StoredObject

if TYPE_CHECKING:
    from vfs.storage.arriving import Arriving

Body = bytes | bytearray | memoryview

#: Bytes of UTF-8 that a key of a bucket may have, the mounted prefix included (S3, R2).
MAX_KEY = 1024

#: User metadata of an empty object that makes it a symbolic link: its text, as `encoded` writes it.
LINK_METADATA = "symlink-target"
#: RFC 2047, which R2 decodes when it stores and encodes when it answers.
_ENCODED = re.compile(r"=\?utf-8\?b\?([A-Za-z0-9+/=]*)\?=", re.IGNORECASE)


class Corrupt(BadBody):
    """The bytes of a whole object do not have the checksum that is known of it."""


def prefix_of(url: str) -> str:
    """What all keys of a bucket's store begin with there, by its `url`: "" or ending in a slash."""
    prefix = url.partition("://")[2].partition("/")[2]
    return f"{prefix}/" if prefix else ""


def encoded(text: str) -> str:
    """Any text as the value of user metadata, which travels in an HTTP header."""
    if text.isascii() and text.isprintable() and text == text.strip() and not _ENCODED.fullmatch(text):
        return text
    return f"=?UTF-8?B?{base64.b64encode(text.encode('utf-8', 'surrogateescape')).decode()}?="


def decoded(value: str) -> str:
    """What `encoded` was given; a value of somebody else's is itself."""
    found = _ENCODED.fullmatch(value)
    if not found:
        return value
    try:
        return base64.b64decode(found[1], validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return value


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in no promised order.

    objects: the objects directly below the prefix (with delimiter) or anywhere below it (without).
    prefixes: the common prefixes, each ending in the delimiter. token: for the next page, None = last.
    """

    objects: tuple[StoredObject, ...]
    prefixes: tuple[str, ...] = ()
    token: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectDetails:
    """What only a HEAD tells: the object and its headers and user metadata (all keys lower case)."""

    object: StoredObject
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that has arrived. number: from 1. version: the store's token of its bytes."""

    number: int
    version: str


@runtime_checkable
class Store(Protocol):
    """A bucket, a folder, or memory."""

    @property
    def url(self) -> str:
        """Where it is, without secrets: `s3://bucket/prefix`."""

    @property
    def remote(self) -> bool:
        """True where a request costs a round trip: caches and read-ahead pay."""

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object. Raises NotFound."""

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page of at most `limit` objects and prefixes whose keys start with `prefix`.

        A store that has to read everything anyway may give it at once, whatever the limit. An error is
        an error: never a page that leaves out what could not be asked for.
        """

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        """Exactly `length` bytes (> 0, inside the object) of exactly this version.

        arriving: who wants them as they come. A store that has them bit by bit puts them there
        (`arriving.begin()`) and says how far it has come, of what has passed all checks but those of the end;
        any other leaves it alone. Raises Stale when the store has another version, NotFound when it has
        none, BadBody when the answer is not what was asked for.
        """

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store an object: with `replaces` only over that version, without only where none is.

        All of it or nothing is seen by others. metadata: of the user, names in lower case, ASCII; a store
        that has no place for it leaves it out. The time of what is given back may be a second or two off that
        of a listing. Raises Stale where the condition does not hold, NotFound where what is replaced is gone.
        """

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store exactly this version under `key` too, without its bytes passing here, as `put` would.

        metadata: instead of what the object has; None = as it is. Onto its own key (replaces = stored) it is
        a change of metadata. Raises Stale where either version is another one, NotFound where one is gone.
        """

    async def delete(self, stored: StoredObject) -> None:
        """Remove this version. Raises Stale when there is another one, NotFound when there is none.

        Of a folder marker: a store whose folders are real raises Stale where the folder is not empty.
        """

    async def start_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload in parts; its name. Nothing of it is seen before `complete_upload`."""

    async def put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Send part `number` (from 1), again if need be. All but the last have one size (`upload.part_size`).

        Raises NotFound where the upload is gone.
        """

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[Part], *, replaces: StoredObject | None
    ) -> StoredObject:
        """Join the parts, under the conditions of `put`. An upload whose condition fails is gone."""

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload and its parts; one that is gone is no error."""

    async def uploads(self, prefix: str = "") -> Mapping[str, str]:
        """Uploads under way below a prefix: their keys by name."""

    def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
        """A URL that reads (or stores) the object for `expires` seconds without credentials, or None."""

    async def aclose(self) -> None:
        """Close connections; the store is not used afterwards."""


@runtime_checkable
class Renews(Protocol):
    """A store with credentials that may be replaced while it is open."""

    async def renew(self) -> None:
        """Take up those that are given now. Raises ConfigError, Denied: the old ones stay."""


@runtime_checkable
class AsksBesides(Protocol):
    """A store that now and then makes requests besides the one it was asked for."""

    def count_in(self, requests: Counter[str]) -> None:
        """Count those there, by kind (`head`, `list`, `get`)."""


@runtime_checkable
class KeepsSums(Protocol):
    """A store that may know a checksum of a whole object."""

    async def checksum(self, stored: StoredObject) -> int | None:
        """The CRC-64/NVME of all bytes of this very version; None where the store keeps none."""
