"""Questions about what exists, as requests to the store: a whole listing, one name. Nothing is kept here."""

from __future__ import annotations

from vfs.cache.listing import FOLDER, Folder, Stored
from vfs.errors import NotFound
from vfs.spans import StoredObject
from vfs.storage.base import Page, Store
from vfs.tasks import gather


async def whole_listing(store: Store, folder: str, prefix: str) -> Folder:
    """All pages of a listing, or an error; the tokens are followed, the order is not relied on.

    folder: the prefix whose children are listed; prefix: what their keys begin with.
    """
    result, token = Folder(), None
    while True:
        page = await store.list(prefix, delimiter="/", token=token)
        result.add(folder, page)
        if (token := page.token) is None:
            result.settle()
            return result


async def probe(store: Store, key: str) -> Stored | None:
    """One name: is it a folder, a file, nothing? A HEAD and a LIST of one key, side by side."""
    head: StoredObject | None = None
    below: Page | None = None

    async def ask_head() -> None:
        nonlocal head
        try:
            head = (await store.head(key)).object
        except NotFound:
            head = None

    async def ask_below() -> None:
        nonlocal below
        # Without a delimiter: that shows the marker of a folder that is empty.
        below = await store.list(key + "/", delimiter="", limit=1)

    await gather((ask_head, ask_below))
    return FOLDER if below is not None and (below.objects or below.prefixes) else head
