"""A disk that forgets what was not synced: what of files and folders is durable, and what only in memory.

Each file has the bytes that its last fsync made durable, and the changes since. Each folder has the names
that are durable, and steps (create, rename, unlink, ...) that are not yet: an fsync of the folder makes them
so. That is all POSIX promises, and less than most file systems give: with `ordered` any fsync makes all
earlier steps durable as well, as the journal of ext4 or XFS does. `cut` makes a second disk of what a power
cut leaves.

What was not synced may be there all the same: a disk writes when and in which order it likes. `Left` says how
much of that is there after a cut.
"""

from __future__ import annotations

import enum
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

PAGE = 4096
_numbers = itertools.count(2)


class Left(enum.Enum):
    """What a cut leaves of what was not synced: nothing; names and sizes, but no bytes (delayed allocation);
    some names, and of each page what it was at some time since the last sync; everything (as a SIGKILL).
    """

    NOTHING = "nothing"
    NAMES = "names"
    SOME = "some"
    ALL = "all"


@dataclass(eq=False)
class Node:
    """Something with an inode number. Modes, times and attributes are durable at once: nobody here counts on
    them.
    """

    disk: Disk
    mode: int
    number: int = field(default_factory=lambda: next(_numbers))
    mtime_ns: int = field(default_factory=time.time_ns)
    attributes: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class File(Node):
    """log: what was done since the last sync: bytes at an offset, or (None) another size."""

    data: bytearray = field(default_factory=bytearray)
    saved: bytearray = field(default_factory=bytearray)
    log: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, offset: int, data: bytes | None) -> None:
        """Write, or (None) make it so long."""
        _apply(self.data, offset, data)
        self.log.append((offset, data))
        self.mtime_ns = time.time_ns()

    def sync(self) -> None:
        """All of it is durable."""
        for change in self.log:
            _apply(self.saved, *change)
        self.log.clear()

    def left(self, left: Left, chance: random.Random) -> bytearray:
        """Its bytes after a cut."""
        if left is Left.NOTHING or not self.log:
            return bytearray(self.saved)
        if left is Left.ALL:
            return bytearray(self.data)
        if left is Left.NAMES:
            return bytearray(self.saved[: len(self.data)].ljust(len(self.data), b"\0"))
        return self._some(chance)

    def _some(self, chance: random.Random) -> bytearray:
        """Each page as it was at some time since the last sync, and one of the sizes it had."""
        now, sizes = bytearray(self.saved), [len(self.saved)]
        pages: dict[int, list[bytes]] = {}
        for offset, data in self.log:
            touched = range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1) if data else range(0)
            for page in touched:
                pages.setdefault(page, [bytes(now[page * PAGE : (page + 1) * PAGE])])
            _apply(now, offset, data)
            sizes.append(len(now))
            for page in touched:
                pages[page].append(bytes(now[page * PAGE : (page + 1) * PAGE]))
        size = chance.choice(sizes)
        found = bytearray(now[:size].ljust(size, b"\0"))
        for page, versions in pages.items():
            chosen = chance.choice(versions).ljust(PAGE, b"\0")
            at = page * PAGE
            if at < size:
                found[at : at + PAGE] = chosen[: size - at]
        return found


@dataclass(eq=False)
class Link(Node):
    """A symbolic link."""

    text: bytes = b""


@dataclass(eq=False)
class Folder(Node):
    """names: as programs see them. saved: those that are durable."""

    names: dict[bytes, Node] = field(default_factory=dict)
    saved: dict[bytes, Node] = field(default_factory=dict)


#: One step: names that get (or, None, lose) something, all of them or none.
Step = list[tuple[Folder, bytes, Node | None]]


@dataclass
class Disk:
    """ordered: see the module. operations: what was done, by kind. At number `last` of them (counted from 1)
    the power is cut, before it takes effect.
    """

    ordered: bool = False
    steps: list[Step] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    last: int = 0
    is_off: bool = False

    def __post_init__(self) -> None:
        self.root = Folder(self, 0o40755)

    def comes(self, operation: str) -> bool:
        """Something is about to be done; False where the power was cut."""
        if not self.is_off:
            self.operations.append(operation)
            self.is_off = len(self.operations) == self.last
        return not self.is_off

    def take(self, step: Step) -> None:
        """Names change."""
        for folder, name, node in step:
            _name(folder.names, name, node)
            folder.mtime_ns = time.time_ns()
        self.steps.append(step)

    def sync_file(self, file: File) -> None:
        """fsync of a file."""
        file.sync()
        if self.ordered:
            self._save(self.steps)

    def sync_folder(self, folder: Folder) -> None:
        """fsync of a folder."""
        touching = [step for step in self.steps if any(of is folder for of, _, _ in step)]
        self._save(self.steps if self.ordered else touching)

    def _save(self, steps: list[Step]) -> None:
        for step in list(steps):
            for folder, name, node in step:
                _name(folder.saved, name, node)
        done = {id(step) for step in steps}
        self.steps = [step for step in self.steps if id(step) not in done]

    def cut(self, left: Left, seed: int = 0) -> Disk:
        """The disk as it is found after a power cut."""
        chance = random.Random(seed)
        names = {id(folder): dict(folder.saved) for folder in self._folders()}
        for step in self._chosen(left, chance):
            for folder, name, node in step:
                _name(names.setdefault(id(folder), dict(folder.saved)), name, node)
        found = Disk(self.ordered)
        copies: dict[int, Node] = {}

        def copy(node: Node) -> Node:
            if node.number not in copies:
                copies[node.number] = made = _bare(found, node)
                if isinstance(node, File) and isinstance(made, File):
                    made.data = node.left(left, chance)
                    made.saved = bytearray(made.data)
                elif isinstance(node, Folder) and isinstance(made, Folder):
                    below = names.get(id(node), node.saved)
                    made.names = {name: copy(one) for name, one in below.items()}
                    made.saved = dict(made.names)
            return copies[node.number]

        root = copy(self.root)
        assert isinstance(root, Folder)
        found.root = root
        return found

    def _chosen(self, left: Left, chance: random.Random) -> list[Step]:
        if left is Left.NOTHING:
            return []
        if left is not Left.SOME:
            return self.steps
        if self.ordered:  # a journal is written in order
            return self.steps[: chance.randint(0, len(self.steps))]
        return [step for step in self.steps if chance.random() < 0.5]

    def _folders(self) -> Iterator[Folder]:
        seen: set[int] = set()
        ahead: list[Node] = [self.root, *(of for step in self.steps for of, _, _ in step)]
        while ahead:
            node = ahead.pop()
            if isinstance(node, Folder) and node.number not in seen:
                seen.add(node.number)
                yield node
                ahead += [*node.names.values(), *node.saved.values()]


def _bare(disk: Disk, node: Node) -> Node:
    kept = {"mode": node.mode, "mtime_ns": node.mtime_ns, "attributes": dict(node.attributes)}
    if isinstance(node, Link):
        return Link(disk, **kept, text=node.text)  # type: ignore[arg-type]
    return type(node)(disk, **kept)  # type: ignore[arg-type]


def _name(names: dict[bytes, Node], name: bytes, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _apply(data: bytearray, offset: int, more: bytes | None) -> None:
    if more is None:
        del data[offset:]
        data.extend(bytes(offset - len(data)))
        return
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(more)] = more
