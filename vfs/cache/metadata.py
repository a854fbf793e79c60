"""What exists: listings, point lookups and their freshness, kept for a while and asked for once.

Listings are all or nothing. A point lookup in a folder that was not listed costs one HEAD and one LIST of
one key, never a listing of the folder. "Not found" is remembered only when the store said so.
Concurrent callers share one request: whoever comes first asks, the others wait and look again. An answer that
was on its way when something of its folder was forgotten is given to who asked, and not kept.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeVar

import trio

from vfs import names
from vfs.cache.asking import probe, whole_listing
from vfs.cache.listing import (
    FOLDER,
    Folder,
    FolderMark,
    Known,
    Point,
    Stored,
    belongs,
    database_of,
    differences,
    restricted,
    version_of,
)
from vfs.cache.silence import Away, Silence
from vfs.cache.walkahead import WalkAhead
from vfs.errors import NotFound, Unavailable
from vfs.spans import StoredObject
from vfs.storage.base import LINK_METADATA, Store, decoded

log = logging.getLogger("vfs.cache.metadata")

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: Folders, single names and name prefixes (per folder), and versions with their age, kept at most. Whoever
#: walks more than this reads each of them once anyway.
MAX_FOLDERS = 4096
MAX_POINTS = 16384
MAX_STEMS = 256
MAX_SEEN = 262144


class Metadata:
    """The metadata cache over one store.

    dir_ttl, attr_ttl, negative_ttl: seconds that a listing, an object's version and a "not found" count as
    fresh. immutable: prefixes or patterns of keys whose versions are never asked for again. For a store
    that is not remote nothing is kept longer than `attr_ttl`, since asking costs nothing.
    """

    def __init__(
        self,
        store: Store,
        *,
        dir_ttl: float = 60.0,
        attr_ttl: float = 1.0,
        negative_ttl: float = 5.0,
        immutable: Collection[str] = (),
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.store = store
        self.keep_for(dir_ttl=dir_ttl, attr_ttl=attr_ttl, negative_ttl=negative_ttl)
        self._immutable = tuple(immutable)
        self._clock = clock
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._links: dict[tuple[str, str], str] = {}
        self._flights: dict[Hashable, trio.Event] = {}
        self._walks = WalkAhead(self._siblings, self._whole, self._has_listing) if store.remote else None
        self._silence = Silence(store, clock)
        #: Told of what others changed, as it is found by looking again: the key, and what is there now.
        self.noticed: Callable[[str, Stored | None], object] = lambda key, now: None

    def keep_for(self, *, dir_ttl: float, attr_ttl: float, negative_ttl: float) -> None:
        """From now on what is known counts as fresh for so many seconds."""
        self.dir_ttl = dir_ttl if self.store.remote else min(dir_ttl, attr_ttl)
        self.attr_ttl = attr_ttl
        self.negative_ttl = negative_ttl if self.store.remote else 0.0

    async def folder(self, prefix: str) -> Folder:
        """The whole listing of a prefix ("" or ending in "/").

        Raises NotFound for an empty prefix, unless it is the root or a real empty folder.
        """
        if self._walks is not None:
            self._walks.note(prefix)
        listing = await self._whole(prefix)
        if not listing.files and not listing.folders and prefix and not await self._is_real(prefix):
            raise NotFound(f"no such folder: {prefix}")
        return listing

    async def _whole(self, prefix: str) -> Folder:
        """The fresh listing of a prefix, asked for where there is none."""
        while (listing := self._fresh_listing(prefix)) is None:
            async with self._flight(("folder", prefix)) as leader:
                if leader:
                    asked, before = self._know(prefix).asked, self._know(prefix).listing
                    try:
                        listing = await self._silence.unless(
                            partial(self._list, prefix, prefix), known=before is not None
                        )
                    except Away:
                        continue  # the one before counts, for a while
                    if self._know(prefix).asked is not asked:
                        break
                    self._see(listing)
                    for name in differences(before, listing) if before is not None else ():
                        self.noticed(prefix + name, listing.get(name))
                    # A whole listing supersedes what was known of single names in it.
                    self._know(prefix).points.clear()
                    self._know(prefix).stems.clear()
                    self._know(prefix).listing = listing
                    break
        return listing

    async def find(self, prefix: str, name: str) -> Stored | None:
        """The stored child `name` of a folder, or None when the store said that there is none."""
        if not names.is_component(name):
            return None
        if not self.store.remote:
            try:
                return (await self.folder(prefix)).get(name)
            except NotFound:
                return None
        while True:
            listing = self._fresh_listing(prefix)
            if listing is not None and ((found := listing.get(name)) or self._is_none(listing, name)):
                return found
            if (point := self._fresh_point(prefix, name)) is not None:
                return point.value
            for stem, folder in self._know(prefix).stems.items():
                if name.startswith(stem) and self._is_young(folder):
                    found = folder.get(name)
                    if found is not None or self._is_none(folder, name):
                        return found
            async with self._flight(("point", prefix + name)) as leader:
                if leader:
                    asked = self._know(prefix).asked
                    try:
                        found = await self._silence.unless(
                            partial(probe, self.store, prefix + name), known=self._know(prefix).knows(name)
                        )
                    except Away:
                        continue
                    if self._know(prefix).asked is not asked:
                        return found
                    if isinstance(found, StoredObject):
                        self._remember(self._seen, found.key, self._clock(), MAX_SEEN)
                    self._compare(prefix, name, found)
                    self._add(prefix, {name: found})
                    self._remember(self._know(prefix).points, name, Point(found, self._clock()), MAX_POINTS)
                    return found

    async def is_left_over(self, prefix: str, name: str, stored: Stored) -> bool:
        """Whether a stored file is a `-wal`, `-shm` or `-journal` stored beside a database: of another moment
        than the database, so that nobody must take it for a part of it.
        """
        base = database_of(name, stored)
        return base is not None and isinstance(await self.find(prefix, base), StoredObject)

    async def starting(self, prefix: str, stem: str) -> Folder:
        """The children of a folder whose names start with `stem`: from its listing, else one LIST."""
        if not self.store.remote:
            return restricted(await self.folder(prefix), stem)
        while True:
            if (listing := self._fresh_listing(prefix)) is not None:
                part = restricted(listing, stem)
                if part.files or part.folders or self._is_none(listing, stem):
                    return part
            for known, kept in self._know(prefix).stems.items():
                if stem.startswith(known) and self._is_young(kept):
                    part = kept if known == stem else restricted(kept, stem)
                    if part.files or part.folders or self._is_none(kept, stem):
                        return part
            async with self._flight(("stem", prefix + stem)) as leader:
                if leader:
                    asked = self._know(prefix).asked
                    try:
                        kept = await self._silence.unless(
                            partial(self._list, prefix, prefix + stem),
                            known=self._know(prefix).knows_some(stem),
                        )
                    except Away:
                        continue
                    if self._know(prefix).asked is not asked:
                        return kept
                    self._see(kept)
                    self._add(prefix, {**kept.files, **dict.fromkeys(kept.folders, FOLDER)})
                    self._remember(self._know(prefix).stems, stem, kept, MAX_STEMS)
                    return kept

    async def current(self, stored: StoredObject) -> StoredObject:
        """The version of an object now: no request while the last look is younger than `attr_ttl`.

        While the store does not answer, the version known last: what is cached can be read, and a read of
        what is not fails by itself, since it asks for that version. Raises NotFound when it is gone.
        """
        while not self._is_fresh(stored.key) and not self._silence.counts:
            async with self._flight(("head", stored.key)) as leader:
                if leader and (now := await self._asked(stored.key)) is not None:
                    return now
        return self._last_known(stored.key) or stored

    def _last_known(self, key: str) -> StoredObject | None:
        """The version of an object that was seen last."""
        prefix, name = _split(key)
        return next((v for v in self._know(prefix).versions(name) if isinstance(v, StoredObject)), None)

    def _compare(self, prefix: str, name: str, now: Stored | None) -> None:
        """Tell when a name that was looked up is another than what was known of it."""
        known = self._know(prefix)
        before = next((version for version in known.versions(name) if version is not None), None)
        if (before is not None or known.listing is not None) and version_of(before) != version_of(now):
            self.noticed(prefix + name, now)
        if now is None and known.listing is not None:
            known.listing.files.pop(name, None)
            known.listing.folders.discard(name)

    async def _asked(self, key: str) -> StoredObject | None:
        """What a HEAD tells, put wherever the object is known; None when there was no answer in time."""
        why: object = "no answer yet"
        prefix, _ = _split(key)
        asked = self._know(prefix).asked
        with trio.move_on_after(self._silence.patience):
            try:
                now = (await self.store.head(key)).object
            except NotFound:
                if self._last_known(key) is not None:
                    self.noticed(key, None)
                self.forget(key)
                raise
            except Unavailable as error:
                why = error
            else:
                self._silence.answered()
                if self._know(prefix).asked is not asked:
                    return now
                before = self._last_known(key)
                self._update(now)
                if before is not None and before.version != now.version:
                    self.noticed(key, now)
                return now
        self._silence.begin(why)
        return None

    def _is_none(self, listing: Folder, name: str) -> bool:
        """Whether a name that a listing has not is none. An old listing says so only of what belongs to its
        files: any other may have come since, and "could not ask" is no absence."""
        if self._clock() - listing.fetched < self.dir_ttl:
            return self._rules_out(listing)
        return belongs(listing, name)

    def confirm(self, stored: StoredObject, when: float) -> None:
        """Bytes of this version were read, asked for at `when`: as good as a HEAD, if it is the one known."""
        known = self._last_known(stored.key)
        if known is not None and (known.version, known.size) == (stored.version, stored.size):
            self._remember(self._seen, stored.key, max(when, self._seen.get(stored.key, when)), MAX_SEEN)

    # -- symbolic links -------------------------------------------------------------------------------

    def link_target(self, stored: StoredObject) -> str | None:
        """Where an object that is a symbolic link leads, as far as is known. See `may_be_link`."""
        return self._links.get((stored.key, stored.version)) or None

    def may_be_link(self, stored: StoredObject) -> bool:
        """A symbolic link is an empty object; that it is one its metadata tells, which no listing does."""
        return stored.size == 0 and (stored.key, stored.version) not in self._links

    async def ask_link(self, stored: StoredObject) -> None:
        """Learn whether an empty object is a link; what is not there any more is none."""
        try:
            details = await self.store.head(stored.key)
        except NotFound:
            return
        target = decoded(details.metadata.get(LINK_METADATA, ""))
        self._remember(self._links, (stored.key, details.object.version), target, MAX_POINTS)

    def remaining(self, prefix: str) -> float:
        """Seconds for which what is known of a folder's names is still fresh."""
        listing = self._fresh_listing(prefix)
        return (
            self.attr_ttl if listing is None else max(0.0, self.dir_ttl - (self._clock() - listing.fetched))
        )

    def forget(self, key: str) -> None:
        """Drop all that is known about one key and the listing of its folder: ask again next time."""
        prefix, name = _split(key)
        self._seen.pop(key, None)
        if (known := self._known.get(prefix)) is not None:
            known.asked = object()
            known.listing = None
            known.points.pop(name, None)
            for stem in [s for s in known.stems if name.startswith(s)]:
                del known.stems[stem]

    def forget_at(self, path: str) -> None:
        """Drop all that is known about a file or folder and everything in it; "" is all there is."""
        for forgotten in (path, *self._with(path)) if path else ():
            self.forget(forgotten)
        prefix = f"{path}/" if path else ""
        for known in [p for p in self._known if p.startswith(prefix)]:
            del self._known[known]
        for key in [k for k in self._seen if k.startswith(prefix)]:
            del self._seen[key]

    def _with(self, path: str) -> list[str]:
        """Folders come with the first thing in them and go with the last: those above a path that may have
        come with it, or be gone with it by now.
        """
        found: list[str] = []
        prefix, name = _split(path)
        while prefix:
            above, folder = _split(prefix[:-1])
            there, here = self._known.get(above), self._known.get(prefix)
            listing = here.listing if here is not None else None
            is_last = listing is not None and not (listing.files.keys() | listing.folders) - {name}
            if not is_last and there is not None and FOLDER in there.versions(folder):
                break
            found.append(prefix[:-1])
            prefix, name = above, folder
        return found

    def listings(self) -> Mapping[str, Folder]:
        """The whole listings at hand, by prefix."""
        return {prefix: known.listing for prefix, known in self._known.items() if known.listing is not None}

    def is_immutable(self, key: str) -> bool:
        """True for keys whose objects are declared never to change."""
        return any(key.startswith(p) or fnmatchcase(key, p) for p in self._immutable)

    def close(self) -> None:
        """End what is under way in the background."""
        if self._walks is not None:
            self._walks.close()

    def _siblings(self, prefix: str) -> Collection[str] | None:
        listing = self._fresh_listing(prefix)
        return None if listing is None else listing.folders

    def _has_listing(self, prefix: str) -> bool:
        return self._fresh_listing(prefix) is not None

    # -- asking ---------------------------------------------------------------------------------------

    async def _list(self, folder: str, prefix: str) -> Folder:
        """A whole listing, and when it was asked for."""
        began = self._clock()
        result = await whole_listing(self.store, folder, prefix)
        result.fetched = began
        self._silence.answered()
        return result

    async def _is_real(self, prefix: str) -> bool:
        """An empty listing is a folder where folders are real (a local directory) or a marker stands."""
        above, name = _split(prefix.removesuffix("/"))
        if not self.store.remote:
            return name in (await self.folder(above)).folders
        return isinstance(await self.find(above, name), FolderMark)

    # -- keeping --------------------------------------------------------------------------------------

    def _know(self, prefix: str) -> Known:
        known = self._known.get(prefix)
        if known is None:
            known = self._known[prefix] = Known()
            if len(self._known) > MAX_FOLDERS:
                self._known.popitem(last=False)
        self._known.move_to_end(prefix)
        return known

    def _is_young(self, listing: Folder) -> bool:
        return self._clock() - listing.fetched < self.dir_ttl or self._silence.counts

    def _rules_out(self, listing: Folder) -> bool:
        """Whether a name that a listing has not is really none: not for long, since others create objects.

        While the store does not answer, what is known must do.
        """
        return self._clock() - listing.fetched < self.negative_ttl or bool(
            getattr(self.store, "offline", False)
        )

    def _see(self, listing: Folder) -> None:
        """A listing tells the versions of its files, as they were when it was asked for."""
        for stored in listing.files.values():
            self._remember(self._seen, stored.key, listing.fetched, MAX_SEEN)

    def _add(self, prefix: str, found: Mapping[str, Stored | None]) -> None:
        """Names that came to be since their folder was listed."""
        listing = self._know(prefix).listing
        if listing is None:
            return
        for name, stored in found.items():
            if isinstance(stored, FolderMark):
                listing.folders.add(name)
            elif stored is not None and name not in listing.folders:
                listing.files[name] = stored

    def _fresh_listing(self, prefix: str) -> Folder | None:
        listing = self._know(prefix).listing
        return listing if listing is not None and self._is_young(listing) else None

    def _fresh_point(self, prefix: str, name: str) -> Point | None:
        point = self._know(prefix).points.get(name)
        if point is None:
            return None
        ttl = self.negative_ttl if point.value is None else self.dir_ttl
        counts = self._silence.counts and point.value is not None
        return point if self._clock() - point.fetched < ttl or counts else None

    def _is_fresh(self, key: str) -> bool:
        if self.is_immutable(key):
            return True
        seen = self._seen.get(key)
        return seen is not None and self._clock() - seen < self.attr_ttl

    def _update(self, now: StoredObject) -> None:
        """A HEAD told the version of an object: put it wherever the object is known."""
        prefix, name = _split(now.key)
        self._remember(self._seen, now.key, self._clock(), MAX_SEEN)
        if not names.is_component(name):
            return  # opened as a key that is no path: it must not turn up among the names of its folder
        known = self._know(prefix)
        point = known.points.get(name)
        if point is not None and point.value is not FOLDER:
            self._remember(known.points, name, Point(now, self._clock()), MAX_POINTS)
        for listing in (known.listing, *(f for stem, f in known.stems.items() if name.startswith(stem))):
            if listing is not None and name not in listing.folders:
                listing.files[name] = now

    def _remember(self, kept: dict[K, T], key: K, value: T, limit: int) -> None:
        """Put at the end; drop the oldest past the limit."""
        kept.pop(key, None)
        kept[key] = value
        while len(kept) > limit:
            del kept[next(iter(kept))]

    @asynccontextmanager
    async def _flight(self, key: Hashable) -> AsyncIterator[bool]:
        """True for the one caller that is to ask; the others wait for it, then look again."""
        if (event := self._flights.get(key)) is not None:
            await event.wait()
            yield False
            return
        event = self._flights[key] = trio.Event()
        try:
            yield True
        finally:
            del self._flights[key]
            event.set()


def _split(key: str) -> tuple[str, str]:
    """The prefix (with its slash) and the name of a key."""
    cut = key.rfind("/") + 1
    return key[:cut], key[cut:]
