"""What a mount that is written to is to show: names over what the store has. No journal, no uploads.

`overlay` is what was changed here and is not known to be stored: a node, or None for what was removed. All
else is as the store has it now. A node keeps its identity while it is open, whatever becomes of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(eq=False)
class Node:
    """A file, or a link (target), or the marker of a folder. closed: what the journal was last promised.
    is_written: its bytes are not all another client's.
    """

    body: bytes = b""
    target: str | None = None
    mode: int | None = None
    closed: bytes | None = None
    dirty: bool = False
    is_written: bool = False
    handles: int = 0

    def shown(self) -> bytes | str:
        return self.body if self.target is None else self.target


class Reference:
    """names: see the module."""

    def __init__(self) -> None:
        self.overlay: dict[str, Node | None] = {}
        self.opened: dict[str, Node] = {}

    def keys(self, stored: Mapping[str, bytes]) -> dict[str, Node | bytes]:
        """Everything that exists: markers too."""
        found: dict[str, Node | bytes] = dict(stored)
        for key, node in self.overlay.items():
            found.pop(key, None)
            if node is not None:
                found[key] = node
        return found

    def tree(self, stored: Mapping[str, bytes], targets: Mapping[str, str]) -> dict[str, bytes | str | None]:
        """As `Engine.tree`."""
        shown: dict[str, bytes | str | None] = {}
        for key, what in self.keys(stored).items():
            for at, letter in enumerate(key):
                if letter == "/":
                    shown[key[: at + 1]] = None
            if not key.endswith("/"):
                shown[key] = what.shown() if isinstance(what, Node) else targets.get(key, what)
        return shown

    def node(self, key: str, stored: Mapping[str, bytes], targets: Mapping[str, str]) -> Node | None:
        """The node under a key, made of what the store has where there is none yet."""
        if key in self.overlay:
            return self.overlay[key]
        if key in self.opened:
            return self.opened[key]
        if key not in stored:
            return None
        return Node(stored[key], targets.get(key))

    def below(self, folder: str, stored: Mapping[str, bytes]) -> Iterator[str]:
        """Keys in a folder, at any depth, its own marker included."""
        return (key for key in list(self.keys(stored)) if key.startswith(folder))

    def remove(self, key: str, folder: str, stored: Mapping[str, bytes]) -> None:
        """A name goes; the folder it was in stays."""
        self.overlay[key] = None
        self.opened.pop(key, None)
        self.keep(folder, stored)

    def keep(self, folder: str, stored: Mapping[str, bytes]) -> None:
        """A folder that was emptied here has a marker from now on."""
        if folder and not any(True for _ in self.below(folder, stored)):
            self.overlay[folder] = Node()

    def move(self, old: str, new: str, node: Node) -> None:
        """A file goes to another name."""
        self.overlay[old] = None
        self.overlay[new] = node
        self.opened.pop(old, None)
        self.opened.pop(new, None)

    def forget(self) -> None:
        """Everything was sent: what is there is what the store has, and what is open."""
        self.overlay = {key: node for key, node in self.overlay.items() if node is not None and node.handles}
