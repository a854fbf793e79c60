"""What a path turned out to be: the answer of the tree to its adapters. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.places import StoredPlace
from vfs.spans import StoredObject


@dataclass(frozen=True)
class Found:
    """What a path turned out to be.

    path: below the root of the mount, "" is the root. version: with the path, the identity of an inode; ""
    for directories. ttl: seconds the answer may be kept, 0 = ask again each time. sources: the stored
    versions the node depends on. attributes: shown as `user.reelfs.NAME`.
    """

    path: str
    node: Node
    version: str = ""
    mtime_ns: int = 0
    ttl: float = 0.0
    sources: tuple[StoredObject, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    place: StoredPlace | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def size(self) -> int | None:
        """Bytes; None while the size of a `Bytes` node is not settled; 0 for a directory."""
        if isinstance(self.node, Spliced):
            return self.node.layout.size
        if isinstance(self.node, Bytes):
            return self.node.size
        return (
            len(self.node.target.encode("utf-8", "surrogateescape")) if isinstance(self.node, Symlink) else 0
        )


def derived(path: str, node: Node, sources: tuple[StoredObject, ...], ttl: float) -> Found:
    """A node of a view at a path; its sources are those of its layout and of whom it was asked for."""
    attributes: dict[str, str] = {}
    mtime_ns, version = node.mtime_ns, ""
    if isinstance(node, Directory):
        ttl = ttl if node.ttl is None else node.ttl
    elif isinstance(node, Spliced):
        sources = tuple(dict.fromkeys((*sources, *node.layout.objects)))
        version = node.version
    elif isinstance(node, Bytes):
        sources = tuple(dict.fromkeys((*sources, *(node.reads.objects if node.reads else ()))))
        version = node.version or ""
        ttl = ttl if node.version is not None else 0.0
    elif isinstance(node, Symlink):
        version = hashlib.blake2b(node.target.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    if sources:
        attributes |= {"source": sources[0].key, "etag": sources[0].version}
        mtime_ns = mtime_ns or max(s.mtime_ns for s in sources)
    if isinstance(node, Spliced | Bytes):
        attributes |= node.attributes
    return Found(path, node, version, mtime_ns, ttl, sources, attributes)


def joined(path: str, name: str) -> str:
    """A name below a path; "" is the root."""
    return f"{path}/{name}" if path else name
