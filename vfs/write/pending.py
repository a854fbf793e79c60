"""Names that differ from the store's: what was created, changed, moved or removed here and is not sent yet.

Pure bookkeeping in memory; `journal` keeps it on the disk. What was sent stays here for a while, *settled*: a
listing that was asked for before that does not know of it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from vfs.errors import ReelfsError, Stale
from vfs.spans import LOCAL, DerivedObject, StoredObject
from vfs.write.attributes import Attributes
from vfs.write.draft import Draft
from vfs.write.rows import Row, object_from, object_to
from vfs.write.staging import Staging


class Kind(enum.Enum):
    """What a name is to be."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class StagedObject(DerivedObject):
    """A file that is not (or not only) in the store, as the tree and the reader see it. entry: what it is."""

    entry: Entry = field(compare=False, repr=False)


@dataclass(slots=True, eq=False)
class Entry:
    """One file, folder or link that differs from the store's, or is open for writing.

    ident: its number, for as long as it is pending, whatever its name. key: where it is ("" once it is
    unlinked; of a folder with its slash). base: what the store has under this key, as far as is known here:
    what the next request replaces. Its content is that of `live` (being written), else of `draft` (closed,
    sealed), else of `origin` (bytes of a stored object, perhaps under another key). stored: what the store
    made of it, once it is settled. since: Unix seconds since when it waits. due: clock seconds before which
    it is left alone. sent: the object the current draft is in, under whatever key.
    whole: nothing that lay beside it when it was closed belongs to it (see `companions`). stands_on: of a
    local file, the version of the database it lies beside, "" while that is pending itself. interim: a
    snapshot of this database is to be sent though it is being written.
    arrived: the number of the draft that the store has by now. waited: so many wait for that. races: what it
    lost, to be told to who asks for `fsync`.
    batch: entries of one folder's move; what they leave behind goes when all have arrived. moved: what was
    under this key is under another one. asks: what its origin is besides its bytes is asked for before it is
    sent.
    """

    ident: int
    key: str
    kind: Kind
    base: StoredObject | None = None
    attributes: Attributes = field(default_factory=Attributes)
    draft: Draft | None = None
    live: Draft | None = None
    origin: StoredObject | None = None
    local: bool = False  # never sent: companions of a database
    waiting: bool = False  # something is to be sent
    whole: bool = True
    stands_on: str = ""
    interim: bool = False
    batch: int = 0
    moved: bool = False
    asks: bool = False
    since: float = 0.0
    due: float = 0.0
    attempts: int = 0
    error: str = ""
    trying: Draft | StoredObject | str | None = None
    starting: list[str] | None = None
    upload: str | None = None
    upload_of: str = ""
    parts: dict[int, str] = field(default_factory=dict)
    sent: StoredObject | None = None
    arrived: int = 0
    waited: int = 0
    races: list[ReelfsError] = field(default_factory=list)
    stored: StoredObject | None = None
    settled: float | None = None
    writers: int = 0
    dirty: bool = False  # written since it was last on the disk
    opened: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock)
    read: Callable[[int, int], Awaitable[bytes]] | None = None

    @property
    def name(self) -> str:
        """Last component of the key."""
        return self.key.removesuffix("/").rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The prefix it is in."""
        return self.key[: len(self.key.removesuffix("/")) - len(self.name)]

    @property
    def content(self) -> Draft | None:
        """What is staged of it."""
        return self.live or self.draft

    @property
    def size(self) -> int:
        """Bytes of a file."""
        if (content := self.content) is not None:
            return content.size
        return self.origin.size if self.origin else 0

    @property
    def version(self) -> str:
        """Changes with the bytes; begins with what stays."""
        content = self.content
        return f"{LOCAL}{self.ident}." + (f"{content.number}.{content.changes}" if content else "0")

    def object(self) -> StoredObject:
        """As the tree sees it now."""
        if self.settled is not None and self.stored is not None:
            return self.stored
        version, read = self.version, self.read
        assert read is not None

        async def make(offset: int, length: int) -> bytes:
            data = await read(offset, length)
            if self.version != version:
                raise Stale(f"{self.key} was written to")
            return data

        return StagedObject(
            self.key,
            self.size,
            version,
            self.attributes.mtime_ns or 0,
            make=make,
            bulky=True,
            entry=self,
        )

    def needs(self) -> list[StoredObject]:
        """Stored objects that bytes of it are still to be got from."""
        if self.kind is not Kind.FILE or self.settled is not None:
            return []
        drafts = [draft for draft in (self.draft, self.live) if draft is not None]
        found = [draft.base for draft in drafts if draft.base and draft.missing(0, draft.size)]
        if self.origin is not None and not drafts:
            found.append(self.origin)
        if self.sent is not None and self.waiting:
            found.append(self.sent)
        return found

    def is_ready(self) -> bool:
        """Whether there is something to be sent that will not change: not while it is first written."""
        return self.kind is not Kind.FILE or self.draft is not None or self.live is None or self.interim

    def is_at_rest(self) -> bool:
        """Whether it was opened for writing, and nothing that the store has not came of it."""
        is_file = self.kind in (Kind.FILE, Kind.LINK) and not self.local and self.settled is None
        return is_file and not self.waiting and self.live is None and self.writers <= 0

    def try_(self, content: Draft | StoredObject | str | None) -> None:
        """Remember what a request carries (None: its outcome is known)."""
        if isinstance(content, Draft):
            content.hold()
        if isinstance(self.trying, Draft):
            self.trying.release()
        self.trying = content

    # -- in the journal --------------------------------------------------------------------------------

    def row(self, *, synced: Draft | None = None) -> Row:
        """As the journal keeps it. Its state: `open` while it was written to after it was last closed.

        synced: what is put on the disk before the row is. Of others only what is there already is told: a
        row may outlive a power cut that they do not.
        """
        live = self.live
        if live is not None and not (self.dirty or live is synced or live.was_synced):
            live = None  # it is as `draft` and `origin` are
        told = {
            "kind": self.kind.value,
            "base": object_to(self.base),
            "attributes": self.attributes.to_json(),
            "draft": _draft_to(self.draft, synced),
            "live": _draft_to(live, synced),
            "origin": object_to(self.origin),
            "local": self.local,
            "whole": self.whole,
            "stands_on": self.stands_on,
            "waiting": self.waiting,
            "batch": self.batch,
            "moved": self.moved,
            "asks": self.asks,
            "since": self.since,
            "trying": _draft_to(self.trying, synced) if isinstance(self.trying, Draft) else None,
            "linking": self.trying if isinstance(self.trying, str) else None,
            "copying": object_to(self.trying) if isinstance(self.trying, StoredObject) else None,
            "starting": self.starting,
            "upload": self.upload,
            "upload_of": self.upload_of,
            "parts": {str(number): version for number, version in self.parts.items()},
            "sent": object_to(self.sent),
        }
        held = [one for one in (self.draft, live, self.trying) if isinstance(one, Draft)]
        return Row(self.ident, self.key, "open" if live and self.dirty else "closed", told, held, synced)

    @classmethod
    def from_row(cls, row: Row, staging: Staging, known: dict[int, Draft]) -> Entry:
        """What `row` gave. known: drafts of other rows, by number. Raises whatever a strange row causes."""
        told = row.told

        def draft(name: str) -> Draft | None:
            written = name == "live" and row.state == "open"
            return _draft_from(told[name], staging, known, written=written)

        entry = cls(row.ident, row.key, Kind(told["kind"]), object_from(told["base"]))
        entry.attributes = Attributes.from_json(told["attributes"])
        entry.origin = object_from(told["origin"])
        entry.local, entry.waiting = bool(told["local"]), bool(told["waiting"])
        entry.whole, entry.stands_on = bool(told.get("whole", True)), str(told.get("stands_on", ""))
        entry.moved, entry.asks = bool(told["moved"]), bool(told.get("asks"))
        entry.batch, entry.since = int(told["batch"]), float(told["since"])
        entry.starting, entry.upload, entry.upload_of = told["starting"], told["upload"], told["upload_of"]
        entry.parts = {int(number): version for number, version in told["parts"].items()}
        entry.sent = object_from(told["sent"])
        entry.draft, entry.live = draft("draft"), draft("live")
        entry.trying = draft("trying") or object_from(told["copying"]) or told["linking"]
        entry.dirty = row.state == "open"
        for sealed in (entry.draft, entry.trying):
            if isinstance(sealed, Draft):
                sealed.seal()
        return entry


def _draft_to(draft: Draft | None, synced: Draft | None) -> list[Any] | None:
    if draft is None:
        return None
    own = draft.own if draft is synced else draft.safe
    return [draft.number, draft.size, object_to(draft.base), draft.limit, own]


def _draft_from(told: Any, staging: Staging, known: dict[int, Draft], *, written: bool) -> Draft | None:
    if told is None:
        return None
    number, size, base, limit, own = told
    draft = known.get(number)
    if draft is None:
        draft = Draft(staging, number, size, object_from(base), limit, [(a, b) for a, b in own])
        known[number] = draft
        staging.restore(draft, written=written)
    return draft.hold()


def _above(key: str) -> Iterator[tuple[str, str]]:
    """The folders above a key: of each the folder it is in, and its name there."""
    at = key.removesuffix("/").rfind("/")
    while at >= 0:
        above = key.rfind("/", 0, at)
        yield key[: above + 1], key[above + 1 : at]
        at = above


class Pending:
    """Entries by key. dropped: told of a settled entry that is taken out."""

    def __init__(self, dropped: Callable[[Entry], None] = lambda entry: None) -> None:
        self.dropped = dropped
        self.entries: dict[str, Entry] = {}
        #: Of these, what the store is not known to have.
        self.unsettled: dict[str, Entry] = {}
        self._inside: dict[str, dict[str, Entry]] = {}
        self._implied: dict[str, Counter[str]] = {}
        self._stored: dict[str, dict[str, float]] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries.values()))

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: str) -> Entry | None:
        """What is under a key, settled or not."""
        return self.entries.get(key)

    def active(self, key: str) -> Entry | None:
        """What is under a key and not settled."""
        entry = self.entries.get(key)
        return entry if entry is not None and entry.settled is None else None

    def add(self, entry: Entry) -> None:
        """Under its key, in place of what is there."""
        self.discard(entry.key)
        entry.settled = entry.stored = None
        if entry.kind is Kind.GONE and entry.key.endswith("/"):
            self._forget_stored(entry)
        self.entries[entry.key] = self.unsettled[entry.key] = entry
        self._inside.setdefault(entry.folder, {})[entry.key] = entry
        self._count(entry, 1)

    def discard(self, key: str) -> Entry | None:
        """Take out what is under a key."""
        entry = self.entries.pop(key, None)
        self.unsettled.pop(key, None)
        if entry is None:
            return None
        folder = key[: len(key.removesuffix("/")) - len(key.removesuffix("/").rpartition("/")[2])]
        inside = self._inside[folder]
        del inside[key]
        if not inside:
            del self._inside[folder]
        if entry.settled is None:
            self._count(entry, -1, key)
        else:
            self.dropped(entry)
        return entry

    def settle(self, entry: Entry, now: float) -> None:
        """The store has it; the folders above it are there from now on by themselves."""
        entry.settled = now
        if self.unsettled.get(entry.key) is entry:
            del self.unsettled[entry.key]
        if entry.kind is not Kind.GONE and self.entries.get(entry.key) is entry:
            self._count(entry, -1)
            for above, name in _above(entry.key):
                self._stored.setdefault(above, {})[name] = now

    def _forget_stored(self, entry: Entry) -> None:
        """A folder goes: what was stored in it made it exist until now."""
        self._stored.get(entry.folder, {}).pop(entry.name, None)
        for folder in [folder for folder in self._stored if folder.startswith(entry.key)]:
            del self._stored[folder]

    def _count(self, entry: Entry, by: int, key: str | None = None) -> None:
        """Whatever is to exist makes the folders above it exist."""
        if entry.kind is Kind.GONE:
            return
        for above, name in _above(entry.key if key is None else key):
            names = self._implied.setdefault(above, Counter())
            names[name] += by
            if not names[name]:
                del names[name]
            if not names:
                del self._implied[above]

    def inside(self, folder: str) -> Iterator[Entry]:
        """Entries directly in a folder."""
        return iter(list(self._inside.get(folder, {}).values()))

    def below(self, folder: str) -> list[Entry]:
        """Entries anywhere below a folder, not the folder's own."""
        return [entry for key, entry in self.entries.items() if key.startswith(folder) and key != folder]

    def folders(self, folder: str, since: float) -> Collection[str]:
        """Names of folders that exist because of something pending below them, or stored since."""
        stored = [name for name, at in self._stored.get(folder, {}).items() if at >= since]
        return {*self._implied.get(folder, ()), *stored}

    def expire(self, before: float) -> None:
        """Drop what was settled before a time."""
        for entry in self:
            if entry.settled is not None and entry.settled < before and not entry.opened:
                self.discard(entry.key)
        for folder, names in list(self._stored.items()):
            self._stored[folder] = {name: at for name, at in names.items() if at >= before}
            if not self._stored[folder]:
                del self._stored[folder]


def moved(stored: StoredObject, key: str) -> StoredObject:
    """The same bytes as they will be known under another key."""
    return replace(stored, key=key)
