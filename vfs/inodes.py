"""Inode numbers: which `Found` the kernel means by a number, and how often it has been told of it.

A number is a hash of what the path stands for (its kind, path and version), so it survives a remount, and
another version of a file is another inode: what the kernel has cached of the old one can never show up in
the new one. A directory has no version; it is its path. All spellings of a selection (`x@5s.jpg`,
`x.mp4@/5000ms.jpg`) are one inode: what was read through one is cached for the others. Pure: no kernel here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from vfs.errors import Stale
from vfs.found import Found
from vfs.names import parse_derived
from vfs.nodes import Bytes, Directory, Spliced, Symlink
from vfs.spans import LOCAL, local_lineage

#: FUSE_ROOT_ID of the kernel's protocol.
ROOT = 1
#: Numbers stay positive when a program keeps them in a signed 64-bit integer (SQLite, Java do).
_MASK = (1 << 63) - 1
_KINDS = {Directory: "d", Spliced: "f", Bytes: "f", Symlink: "l"}

Identity = tuple[str, str, str]
#: Identities that one number has had, kept at most: the stored version, the file being written, the next.
MAX_ALIASES = 4


def identity(found: Found) -> Identity:
    """What makes an inode another one: kind (file, directory, link), path, version.

    A file that is written to stays the same through its versions and names, until the store has it.
    """
    stored = found.place.stored if found.place is not None else None
    if stored is not None and (lineage := local_lineage(stored.version)) is not None:
        return _KINDS[type(found.node)], lineage, ""
    return _KINDS[type(found.node)], _canonical(found), found.version


def written_identity(ident: int) -> Identity:
    """That of a file that is written to."""
    return "f", f"{LOCAL}{ident}", ""


def _canonical(found: Found) -> str:
    """One path for all spellings of what is derived from a file; any other path stands for itself."""
    folder, _, name = found.path.rpartition("/")
    if not found.version or not found.sources or found.path == found.sources[0].key:
        return found.path
    derived = parse_derived(name if folder.endswith("@") else name.rpartition("@")[2])
    return f"{found.sources[0].key}@/{derived.canonical}" if derived else found.path


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Bytes of a volatile file as they were made at one moment (seconds of the event loop's clock)."""

    content: bytes
    made: float


@dataclass(slots=True, eq=False)
class Inode:
    """One number the kernel knows.

    lookups: how many references the kernel holds. size: bytes once settled, None before. snapshot: the
    newest content of a volatile file. opened: handles open on it now.
    """

    number: int
    found: Found
    lookups: int = 0
    size: int | None = None
    snapshot: Snapshot | None = None
    opened: int = 0

    @property
    def volatile(self) -> bool:
        """A file made anew each time: it has no version."""
        return isinstance(self.found.node, Bytes) and not self.found.version


class Inodes:
    """The table of inodes the kernel knows; everything in it is there because of a lookup or the root."""

    def __init__(self, root: Found) -> None:
        self._table: dict[int, Inode] = {ROOT: Inode(ROOT, root)}
        self._adopted: dict[Identity, int] = {}
        self._adoptees: dict[int, list[Identity]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Inode:
        """The inode of a number. Raises Stale for one that is unknown (never the kernel's fault: ESTALE)."""
        try:
            return self._table[number]
        except KeyError:
            raise Stale(f"inode {number} is not known") from None

    def below(self, path: str) -> list[tuple[int, str]]:
        """The names the kernel may remember at or below a path: number of the folder, and name.

        path: below the root of the mount; "" is all of it.
        """
        folders = {i.found.path: n for n, i in self._table.items() if isinstance(i.found.node, Directory)}
        names = []
        for inode in self._table.values():
            parent, _, name = inode.found.path.rpartition("/")
            inside = not path or inode.found.path == path or inode.found.path.startswith(f"{path}/")
            if inside and inode.number != ROOT and parent in folders:
                names.append((folders[parent], name))
        return names

    def number(self, found: Found) -> int:
        """The number of what was found; the same in every mount unless two identities collide.

        On a collision with a different identity that the kernel holds now, the next of a fixed sequence.
        """
        if not found.path:
            return ROOT
        wanted = identity(found)
        if (adopted := self._adopted.get(wanted)) is not None:
            return adopted
        for number in _candidates(wanted):
            held = self._table.get(number)
            if held is None or identity(held.found) == wanted:
                return number
        raise AssertionError("the sequence of candidates has no end")

    def peek(self, found: Found) -> Inode:
        """The inode as `remember` would have it, without a reference being counted."""
        number = self.number(found)
        held = self._table.get(number)
        if held is None:
            return Inode(number, found, size=found.size)
        held.found = found
        if held.size is None:
            held.size = found.size
        return held

    def adopt(self, number: int, found: Found) -> None:
        """What the kernel knows by this number is by now this: it was moved, or written to."""
        inode = self._table.get(number)
        if inode is None:
            return
        wanted = identity(found)
        self.alias(number, wanted)
        inode.found, inode.size = found, found.size

    def alias(self, number: int, wanted: Identity) -> None:
        """An identity that this number stands for, too."""
        known = self._adoptees.setdefault(number, [])
        if wanted in known:
            known.remove(wanted)
        known.append(wanted)
        self._adopted[wanted] = number
        while len(known) > MAX_ALIASES:
            self._drop(number, known.pop(0))

    def _drop(self, number: int, known: Identity) -> None:
        if self._adopted.get(known) == number:
            del self._adopted[known]

    def known(self) -> list[Inode]:
        """All that the kernel knows."""
        return list(self._table.values())

    def get(self, number: int) -> Inode | None:
        """The inode of a number, or None."""
        return self._table.get(number)

    def remember(self, found: Found) -> Inode:
        """The kernel is told of this: one more reference."""
        inode = self.peek(found)
        self._table[inode.number] = inode
        inode.lookups += 1
        return inode

    def forget(self, number: int, references: int) -> None:
        """The kernel drops references; at none the number is forgotten. The root stays."""
        inode = self._table.get(number)
        if inode is None or number == ROOT:
            return
        inode.lookups -= references
        if inode.lookups <= 0:
            del self._table[number]
            for known in self._adoptees.pop(number, ()):
                self._drop(number, known)


def _candidates(wanted: Identity) -> Iterator[int]:
    """The numbers an identity may have, in order of preference. 0 and the root's are never among them."""
    text = "\0".join(wanted).encode("utf-8", "surrogateescape")
    seed = 0
    while True:
        number = xxhash.xxh3_64_intdigest(text, seed=seed) & _MASK
        if number > ROOT:
            yield number
        seed += 1
