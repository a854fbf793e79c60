"""What is known of a folder: its listing, sorted into names, and single names. Pure: nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vfs import names
from vfs.spans import DerivedObject, StoredObject
from vfs.storage.base import Page


@dataclass(slots=True)
class Folder:
    """One whole listing. files: by name. folders: names. shadowed: file objects hidden by a folder of the
    same name. unpathable: keys (or prefixes, ending in "/") that cannot be a path. fetched: clock seconds.
    """

    files: dict[str, StoredObject] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    shadowed: dict[str, StoredObject] = field(default_factory=dict)
    unpathable: set[str] = field(default_factory=set)
    fetched: float = 0.0

    def add(self, prefix: str, page: Page) -> None:
        """Sort one page of the listing of `prefix` into names."""
        for stored in page.objects:
            name = stored.key[len(prefix) :]
            if not name:
                continue  # the marker object of the folder itself
            if names.is_component(name):
                self.files[name] = stored
            else:
                self.unpathable.add(stored.key)
        for common in page.prefixes:
            name = common[len(prefix) :].removesuffix("/")
            if names.is_component(name):
                self.folders.add(name)
            else:
                self.unpathable.add(common)

    def settle(self) -> None:
        """A key that is file and folder is shown as the folder; the file is kept aside."""
        for name in self.folders & self.files.keys():
            self.shadowed[name] = self.files.pop(name)

    def get(self, name: str) -> Stored | None:
        """The child of that name, or None."""
        if name in self.folders:
            return FOLDER
        return self.files.get(name)


class FolderMark:
    """Says that a name is a folder; `FOLDER` is the one value."""


FOLDER = FolderMark()
Stored = StoredObject | FolderMark


@dataclass(slots=True)
class Point:
    """One remembered answer about one name (None = there is none)."""

    value: Stored | None
    fetched: float


@dataclass(slots=True)
class Known:
    """All that is known of one folder: its whole listing, single names, and listings of name prefixes.

    asked: another one whenever something of it is forgotten, so that an answer asked for before is known.
    """

    listing: Folder | None = None
    points: dict[str, Point] = field(default_factory=dict)
    stems: dict[str, Folder] = field(default_factory=dict)
    asked: object = field(default_factory=object, repr=False)

    def versions(self, name: str) -> Iterator[Stored | None]:
        """What each of them says about a name."""
        if self.listing is not None:
            yield self.listing.get(name)
        if (point := self.points.get(name)) is not None:
            yield point.value
        yield from (
            found
            for stem, folder in self.stems.items()
            if name.startswith(stem) and (found := folder.get(name))
        )

    def knows(self, name: str) -> bool:
        """Whether this, however old, may stand for an answer about a name."""
        found = any(version is not None for version in self.versions(name))
        return found or (self.listing is not None and belongs(self.listing, name))

    def knows_some(self, stem: str) -> bool:
        """The same for the names that start with `stem`."""
        folders = (folder for known, folder in self.stems.items() if stem.startswith(known))
        return any(
            (part := restricted(folder, stem)).files or part.folders or belongs(folder, stem)
            for folder in (*([self.listing] if self.listing else ()), *folders)
        )


def restricted(listing: Folder, stem: str) -> Folder:
    """The part of a listing whose names start with `stem`."""
    return Folder(
        files={n: o for n, o in listing.files.items() if n.startswith(stem)},
        folders={n for n in listing.folders if n.startswith(stem)},
        fetched=listing.fetched,
    )


def left_over(folder: Folder) -> set[str]:
    """The names in a listing that are `-wal`, `-shm` and `-journal` files stored beside a database."""
    found = ((name, database_of(name, stored)) for name, stored in folder.files.items())
    return {name for name, base in found if base in folder.files}


def database_of(name: str, stored: Stored) -> str | None:
    """The database, by its name, that a stored file would lie beside. (What is staged is not stored.)"""
    named = names.companion(name)
    if named is None or not isinstance(stored, StoredObject) or isinstance(stored, DerivedObject):
        return None
    return named[0] if names.is_database_name(named[0]) else None


def belongs(listing: Folder, name: str) -> bool:
    """Whether a name would be derived from a file of a listing, or a sidecar of one."""
    ends = [at for at, character in enumerate(name) if character == "."]
    return "@" in name or any(name[:at] in listing.files for at in ends)


def differences(before: Folder, now: Folder) -> list[str]:
    """The names that came, went, or are another version or kind, sorted."""
    known = before.files
    changed = {n for n, stored in now.files.items() if n in known and known[n].version != stored.version}
    return sorted(changed | (known.keys() ^ now.files.keys()) | (before.folders ^ now.folders))


def version_of(stored: Stored | None) -> object:
    """What makes a name another one: there or not, a folder or a version of a file."""
    return stored.version if isinstance(stored, StoredObject) else stored
