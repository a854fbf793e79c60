"""Paths to nodes: stored objects merged with what the views derive. No inode, handle, errno or kernel here.

Order of precedence for a name in a stored folder: the stored child, the companion directory `FILE@/`, the
derived sibling `NAME@SEL.FMT`, then what the views of the folder answer. A real key always wins, but for the
few names that a view reserves at the root.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from vfs import names
from vfs.cache.listing import FolderMark, left_over
from vfs.errors import (
    IsADirectory,
    MediaError,
    NameTooLong,
    NotADirectory,
    NotFound,
    ReelfsError,
    Stale,
    TooBig,
    WorkerFailed,
)
from vfs.found import Found, derived, joined
from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.panel import Panel
from vfs.places import Services, StoredPlace
from vfs.spans import DerivedObject, Layout, StoredObject, stored_versions
from vfs.views import View

log = logging.getLogger("vfs.tree")


#: Files remembered to be no containers though they have the name of one.
MAX_PLAIN = 65536


#: The name of made files among what is kept on disk, and the largest that is.
_MADE, _MOST_KEPT = "made", 4 << 20

#: An attribute that is worked out when asked for: which paths have it, and its value.
Exposed = tuple[Callable[[Found], bool], Callable[[Found], Awaitable[str]]]


class Tree:
    """The mounted tree over one store.

    views: asked in order. expand: patterns of stored files shown as directories. show_derived: list
    `FILE@/` beside each file that something can be derived from. exposed: further attributes, worked out
    when asked for (`explain`, `presigned_url`).
    """

    def __init__(
        self,
        services: Services,
        views: Sequence[View],
        *,
        expand: Iterable[str] = (),
        show_derived: bool = False,
        exposed: Mapping[str, Exposed] | None = None,
    ) -> None:
        self._services = services
        self._metadata = services.metadata
        self._reports = services.reports
        self._panel = Panel(views, services.reports)
        self._expand = tuple(pattern.lower() for pattern in expand)
        self._show_derived = show_derived
        self._exposed = exposed or {}
        self._plain: dict[StoredObject, None] = {}
        #: Names of the root at which nothing can be stored.
        self.reserved = self._panel.reserved
        services.paths.node = self._node_at

    # -- the interface of the adapters ------------------------------------------------------------------

    async def root(self) -> Found:
        """The root directory."""
        return self._folder(StoredPlace.root(self._services))

    async def resolve(self, path: str) -> Found:
        """What a path below the root is. Raises NotFound, NotADirectory, NameTooLong, StoreError, ..."""
        found = await self.root()
        for name in filter(None, path.split("/")):
            found = await self.lookup(found, name)
        return found

    async def _node_at(self, path: str) -> Node:
        return (await self.resolve(path)).node

    async def lookup(self, parent: Found, name: str) -> Found:
        """The child `name` of a directory. Raises NotFound."""
        if not isinstance(parent.node, Directory):
            raise NotADirectory(f"{parent.path} is a file")
        if len(name.encode("utf-8", "surrogateescape")) > names.NAME_MAX:
            raise NameTooLong(f"a name of more than {names.NAME_MAX} bytes in {parent.path or '/'}")
        if not names.is_component(name):
            raise NotFound(f"no such name: {name!r}")
        place = parent.place
        try:
            if place is not None and place.is_folder:
                found = await self._in_folder(place, name) or await self._in_shared(place, name)
            else:
                found = await self._in_directory(parent, parent.node, name)
            if found is None:
                raise NotFound(f"no such file: {joined(parent.path, name)}")
        except NotFound as error:
            error.ttl = self._metadata.negative_ttl
            raise
        return found

    async def entries(self, folder: Found) -> Mapping[str, Found]:
        """The names a directory lists, whole or an error; nothing is produced for it."""
        if not isinstance(folder.node, Directory):
            raise NotADirectory(f"{folder.path} is a file")
        place = folder.place
        if place is not None and place.is_folder:
            return await self._list_folder(place)
        found = {}
        for name, node in (await folder.node.entries()).items():
            if node is None:
                node = await self._unsettled(folder, name)
            if names.is_component(name):
                found[name] = derived(joined(folder.path, name), node, folder.sources, folder.ttl)
        return found

    async def settle(self, found: Found) -> bytes:
        """The content of a `Bytes` node: made once per version, shared by all who ask."""
        node = found.node
        if not isinstance(node, Bytes):
            raise IsADirectory(f"{found.path} is not made whole")
        if node.version is None:
            return await node.produce()
        try:
            content: bytes = await self._services.derived.get(
                ("bytes", node.version), partial(self._made, node), cost=len, pool=node.pool
            )
        except (MediaError, TooBig, WorkerFailed) as error:
            about = found.sources[0].key if found.sources else found.path
            self._reports.report(about, f"{found.name}: {error}")
            raise
        if node.size is not None and len(content) != node.size:
            raise ReelfsError(f"{found.path}: {len(content)} bytes were made where {node.size} were promised")
        return content

    async def _made(self, node: Bytes) -> bytes:
        """The content of a node, from disk where it is kept there."""
        if not node.keep or node.version is None:
            return await node.produce()
        kept, version = self._services.kept, StoredObject("", 0, node.version)
        content = await kept.get(version, _MADE)
        if content is None:
            content = await node.produce()
            if len(content) <= _MOST_KEPT:
                await kept.put(version, _MADE, content)
        return content

    async def refresh(self, found: Found) -> Found:
        """At open: ask whether the versions are still the stored ones (at most once in `attr_ttl`).

        Raises Stale when one was replaced or removed; a new lookup then sees what is there now.
        """
        for stored in found.sources:
            try:
                now = await self._metadata.current(stored)
            except NotFound:
                raise Stale(f"{stored.key} was removed") from None
            if now.version != stored.version or now.size != stored.size:
                raise Stale(f"{stored.key} was replaced")
        return found

    async def xattr_names(self, found: Found) -> list[str]:
        """Attributes to list, without the prefix `user.reelfs.`.

        What is worked out when asked for is not listed: `cp -a` would copy it, presigned URLs included.
        """
        return list(found.attributes)

    async def xattr(self, found: Found, name: str) -> str:
        """The value of one attribute. Raises KeyError when there is none."""
        if name in found.attributes:
            return found.attributes[name]
        applies, value = self._exposed[name]
        if not applies(found):
            raise KeyError(name)
        return await value(found)

    def at(self, path: str, stored: StoredObject | FolderMark) -> Found:
        """What a stored object or folder is under a path, with nobody asked."""
        folder, _, name = path.rpartition("/")
        place = StoredPlace(self._services, folder, f"{folder}/" if folder else "", None)
        return self._stored(place, name, stored)

    def folder_at(self, path: str) -> Found:
        """A stored folder under a path, with nobody asked."""
        return self._folder(StoredPlace(self._services, path, f"{path}/" if path else "", None))

    # -- stored folders ---------------------------------------------------------------------------------

    async def _in_folder(self, place: StoredPlace, name: str) -> Found | None:
        """One name in a stored folder; a version that is replaced meanwhile is asked for again, once."""
        try:
            return await self._in_folder_once(place, name)
        except Stale as error:
            log.info("%s: %s; looking again", joined(place.path, name), error)
            for file in (await self._metadata.starting(place.prefix, _stem(name))).files.values():
                self._metadata.forget(file.key)
            return await self._in_folder_once(place, name)

    async def _in_folder_once(self, place: StoredPlace, name: str) -> Found | None:
        if not place.path and (found := await self._reserved(place, name)) is not None:
            return found
        if (cut := names.split_derived(name)) is None:
            stored = await self._metadata.find(place.prefix, name)
            if stored is not None and not await self._metadata.is_left_over(place.prefix, name, stored):
                return await self._looked_up(place, name, stored)
        else:
            # One LIST tells all: a real key of this very name, the source, and its sidecars.
            nearby = await self._metadata.starting(place.prefix, cut[0])
            if (stored := nearby.get(name)) is not None:
                self._note_collision(place, name, nearby.files)
                return await self._looked_up(place, name, stored)
            if (found := await self._sibling(place, name, nearby.files)) is not None:
                return found
        if (node := await self._panel.resolve(place, name)) is not None:
            return derived(joined(place.path, name), node, (), self._ttl(place))
        if cut is not None:
            self._refuse(place, name, cut, nearby.files)
        return None

    def _refuse(
        self, place: StoredPlace, name: str, cut: tuple[str, str], files: Mapping[str, StoredObject]
    ) -> None:
        """Raise NotFound with what can be said of a name that looks like one derived from a file here."""
        for file in (files[known] for known in _candidates(files, *cut)):
            if cut[1] and self._panel.of(place.file(file)):
                raise NotFound(
                    f"{joined(place.path, name)}: {cut[1]} is not made of {file.key}; "
                    f"{file.key}@/ lists what is"
                )

    async def _reserved(self, root: StoredPlace, name: str) -> Found | None:
        """`.reelfs` and its like: names of the root that are a view's own, also while the store is away."""
        if name not in self._panel.reserved or (node := await self._panel.resolve(root, name)) is None:
            return None
        listing = self._metadata.listings().get("")
        if listing is not None and listing.get(name) is not None:
            self._reports.collision(name, f"the mount's own name hides a real key: see .raw/{name}")
        return derived(name, node, (), 0.0)

    async def _in_shared(self, place: StoredPlace, name: str) -> Found | None:
        """A name that a stored folder has not, of a directory of a view with the same name at the root."""
        if not place.path or "/" in place.path:
            return None
        root = StoredPlace.root(self._services)
        try:
            node = await self._panel.resolve(root, place.path)
        except ReelfsError:
            return None  # reported; what is stored here is none of that view's
        if not isinstance(node, Directory):
            return None
        self._reports.collision(place.path, "a real folder: what is made stands beside what is stored")
        return await self._in_directory(derived(place.path, node, (), self._ttl(root)), node, name)

    async def _sibling(
        self, place: StoredPlace, name: str, files: Mapping[str, StoredObject]
    ) -> Found | None:
        """`FILE@/` or `NAME@REST`, of the first file that NAME may mean and a view answers for."""
        stem, _, rest = name.rpartition("@")
        for known in _candidates(files, stem, rest):
            file = files[known]
            source = place.file(file)
            if not rest and self._panel.of(source):
                return self._directory_of(source, joined(place.path, name))
            if rest and (node := await self._panel.resolve(source, rest)) is not None:
                return derived(joined(place.path, name), node, (file,), self._ttl(place))
        return None

    async def _list_folder(self, place: StoredPlace) -> dict[str, Found]:
        """Stored children, then what the views of the folder list; a failing view hides no stored file."""
        listing = await self._metadata.folder(place.prefix)
        found = {
            name: self._folder(place.folder(name))
            for name in listing.folders
            if place.prefix or not name.startswith(names.OWN)
        }
        hidden = left_over(listing)
        for name, file in listing.files.items():
            if name in hidden:
                continue
            found[name] = self._stored(place, name, file)
            if "@" in name:
                self._note_collision(place, name, listing.files)
        for name in listing.shadowed:
            self._reports.collision(
                joined(place.path, name), "a key that is file and folder: shown as the folder"
            )
        if self._show_derived:
            for name, file in listing.files.items():
                if name + "@" not in found and self._panel.of(place.file(file)):
                    found[name + "@"] = self._directory_of(place.file(file), joined(place.path, name + "@"))
        for name in self._panel.reserved & found.keys() if not place.path else ():
            if (own := await self._reserved(place, name)) is not None:
                found[name] = own
        listed, _ = await self._panel.entries(place)
        for name, node in listed.items():
            if name in found:
                self._reports.collision(joined(place.path, name), "a real key hides a derived name")
            elif names.is_component(name):
                made = node or await self._unsettled(self._folder(place), name)
                found[name] = derived(joined(place.path, name), made, (), self._ttl(place))
        return found

    def _note_collision(self, place: StoredPlace, name: str, files: Mapping[str, StoredObject]) -> None:
        """A real key that looks like a derived name of a file beside it."""
        cut = names.split_derived(name)
        if cut is None or names.parse_derived(cut[1]) is None:
            return
        for file in (files[known] for known in _candidates(files, *cut)):
            if file.key != place.prefix + name and self._panel.of(place.file(file)):
                self._reports.collision(joined(place.path, name), f"hides what is derived from {file.key}")
                return

    # -- nodes to Found ---------------------------------------------------------------------------------

    def _ttl(self, place: StoredPlace) -> float:
        return self._metadata.remaining(place.prefix)

    async def _looked_up(self, place: StoredPlace, name: str, stored: StoredObject | FolderMark) -> Found:
        """As listed, but for a file to be expanded that turns out to have the name of a container only, and
        for an empty one that turns out to be a symbolic link.
        """
        if isinstance(stored, StoredObject) and self._metadata.may_be_link(stored):
            await self._metadata.ask_link(stored)
        found = self._stored(place, name, stored)
        if not (isinstance(stored, StoredObject) and isinstance(found.node, Directory)):
            return found
        if await self._panel.is_directory(place.file(stored)):
            return found
        self._plain[stored] = None
        while len(self._plain) > MAX_PLAIN:
            del self._plain[next(iter(self._plain))]
        return self._stored(place, name, stored)

    def _stored(self, place: StoredPlace, name: str, stored: StoredObject | FolderMark) -> Found:
        if isinstance(stored, FolderMark):
            return self._folder(place.folder(name))
        file = place.file(stored)
        if self._expands(name, stored) and self._panel.of(file):
            return self._directory_of(file, joined(place.path, name))
        whole = Spliced(layout=Layout.whole(stored), mtime_ns=stored.mtime_ns)
        node: Node = whole
        ttl = self._ttl(place)
        if (target := self._metadata.link_target(stored)) is not None:
            node = Symlink(target=target, mtime_ns=stored.mtime_ns)
        elif self._metadata.may_be_link(stored):
            ttl = 0.0  # a lookup will ask
        return Found(
            path=joined(place.path, name),
            node=node,
            version=whole.version,
            mtime_ns=stored.mtime_ns,
            ttl=ttl,
            sources=(stored,),
            attributes={"key": stored.key, "etag": stored.version},
            place=file,
        )

    def _expands(self, name: str, stored: StoredObject) -> bool:
        """By its name, unless it was seen to be no container, or is still being written here."""
        return not (isinstance(stored, DerivedObject) or stored in self._plain) and any(
            fnmatchcase(name.lower(), pattern) for pattern in self._expand
        )

    def _folder(self, place: StoredPlace) -> Found:
        async def entries() -> Mapping[str, Node | None]:
            return {name: found.node for name, found in (await self._list_folder(place)).items()}

        async def lookup(name: str) -> Node | None:
            found = await self._in_folder(place, name)
            return found.node if found else None

        node = Directory(entries=entries, lookup=lookup)
        return Found(
            path=place.path,
            node=node,
            ttl=self._metadata.dir_ttl,
            attributes={"key": place.prefix},
            place=place,
        )

    def _directory_of(self, file: StoredPlace, path: str) -> Found:
        """What is derived from a file, as the directory `FILE@/` (or the file itself, where expanded)."""

        async def entries() -> Mapping[str, Node | None]:
            listed, failure = await self._panel.entries(file)
            if failure is not None and not listed:
                raise failure
            return listed

        async def lookup(name: str) -> Node | None:
            return await self._panel.resolve(file, name)

        stored = file.object
        return Found(
            path=path,
            node=Directory(entries=entries, lookup=lookup, mtime_ns=stored.mtime_ns),
            mtime_ns=stored.mtime_ns,
            ttl=self._metadata.attr_ttl,
            sources=stored_versions(stored),
            attributes={"source": stored.key, "etag": stored.version},
        )

    async def _in_directory(self, parent: Found, directory: Directory, name: str) -> Found | None:
        """One name in a directory that a view made."""
        node = await directory.lookup(name)
        if node is None:
            node = (await directory.entries()).get(name)
        if node is not None:
            return derived(joined(parent.path, name), node, parent.sources, parent.ttl)
        cut = names.split_derived(name)
        return await self._beside_made(parent, directory, name, *cut) if cut else None

    async def _beside_made(
        self, parent: Found, directory: Directory, name: str, stem: str, rest: str
    ) -> Found | None:
        """`FILE@/` or `NAME@REST` of a file that a view made, as of a stored one."""
        listed = await directory.entries()
        for file in _candidates(listed, stem, rest):
            node = await directory.lookup(file) or listed[file]
            if not isinstance(node, Spliced):
                continue
            source = StoredPlace.made(self._services, joined(parent.path, file), node)
            if not rest and self._panel.of(source):
                return self._directory_of(source, joined(parent.path, name))
            if rest and (made := await self._panel.resolve(source, rest)) is not None:
                return derived(joined(parent.path, name), made, parent.sources, parent.ttl)
        return None

    async def _unsettled(self, folder: Found, name: str) -> Node:
        """The node of a name listed as "made on lookup"; one that fails is listed, and fails when read."""
        assert isinstance(folder.node, Directory)
        try:
            node = await folder.node.lookup(name)
            if node is not None:
                return node
            failure = ReelfsError(f"{joined(folder.path, name)} is listed but was not made")
        except ReelfsError as error:
            failure = error

        async def fail() -> bytes:
            raise failure

        return Bytes(produce=fail, version=None)


def _stem(name: str) -> str:
    """The NAME of `NAME@REST`, or the whole name."""
    cut = names.split_derived(name)
    return cut[0] if cut else name


def _candidates(files: Collection[str], stem: str, rest: str) -> list[str]:
    """The files that NAME may mean: itself; else those without extension equal to it.

    Of several, the one whose extension is the wanted format comes first, then by name.
    """
    if stem in files or not rest:
        return [stem] if stem in files else []
    wanted = rest.rpartition(".")[2]
    fitting = [name for name in files if name.rpartition(".")[0] == stem]
    fitting.sort(key=lambda name: (name.rpartition(".")[2].lower() != wanted, name))
    return fitting
