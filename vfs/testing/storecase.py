"""What a contract of stores needs: a store that whoever inherits makes, and what it may differ in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from vfs.errors import NotFound
from vfs.spans import StoredObject
from vfs.storage.base import Page, Store

#: Keys that have broken programs: what URLs, shells, XML and path joins treat specially.
ODD_KEYS = (
    "with space/and more.mp4",
    "plus+and%20percent%/50%.mp4",
    "question?and=ampersand&x.mp4",
    "hash#mark.mp4",
    "quotes'\"and`ticks.mp4",
    "brackets[1](2){3}<4>.mp4",
    "ünïcödé/日本語/🎬.mp4",
    "semi;colon,comma:at@tilde~star*.mp4",
    "back\\slash|pipe^caret.mp4",
    "dots..inside/...mp4",
    "-dash first/--x.mp4",
    "long/" + "n" * 240 + ".mp4",
)


class StoreCase:
    """Inherit, implement `store` and `replace`. A known deviation is a class attribute set to False:

    pages: a listing gives at most `limit` objects and prefixes at a time.
    odd_keys: keys to try; leave out what the store cannot hold.
    conditional: writes are refused where their condition does not hold.
    metadata: what is told with an object is kept.
    markers: empty folders can be made.
    part: bytes of a part, of those that are not the last.
    multipart: an object made of parts has the etag that completing it told.
    gone_upload: what a part of an upload that is gone raises.
    """

    pages = True
    conditional = True
    metadata = True
    markers = True
    part = 5 << 20
    multipart = True
    gone_upload: tuple[type[Exception], ...] = (NotFound,)
    odd_keys: tuple[str, ...] = ODD_KEYS

    def store(self, objects: Mapping[str, bytes]) -> AbstractAsyncContextManager[Store]:
        """A store that holds exactly these objects, closed afterwards."""
        raise NotImplementedError

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        """Put other bytes at a key, as another program would."""
        raise NotImplementedError


def same(one: StoredObject, other: StoredObject) -> bool:
    """One version of one object: its time may be that of the answer."""
    is_same = (one.key, one.size, one.version) == (other.key, other.size, other.version)
    return is_same and abs(one.mtime_ns - other.mtime_ns) <= 2 * 10**9


async def collected(store: Store, prefix: str = "", *, delimiter: str = "/", limit: int = 1000) -> list[Page]:
    """All pages of a listing."""
    pages: list[Page] = []
    token: str | None = None
    while True:
        pages.append(await store.list(prefix, delimiter=delimiter, token=token, limit=limit))
        if (token := pages[-1].token) is None:
            return pages
        assert len(pages) < 1000, "a listing without end"


async def whole(store: Store, prefix: str = "", *, delimiter: str = "/") -> Page:
    """All pages of a listing as one."""
    pages = await collected(store, prefix, delimiter=delimiter)
    return Page(
        tuple(stored for page in pages for stored in page.objects),
        tuple(name for page in pages for name in page.prefixes),
    )


def listed(page: Page) -> list[str]:
    """Keys of objects, and prefixes, of one page."""
    return [*(stored.key for stored in page.objects), *page.prefixes]


def names(page: Page) -> set[str]:
    """Keys of objects, and prefixes, once each."""
    assert len(set(listed(page))) == len(listed(page)), "a name is listed twice"
    return set(listed(page))
