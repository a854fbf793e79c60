"""`search/` at the root of a mount: queries as folders, results as playable files.

Names are queries: what is under `search/` is endless, so its folders list nothing but what ends (`@/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vfs import Directory, Indexer, Node, Place, Settings, Spliced, View, hookimpl
from vfs_search import bypicture, bytext, grammar, results
from vfs_search.grammar import Moment, Text
from vfs_search.hits import Answer
from vfs_search.library import Index
from vfs_search.options import Options
from vfs_search.results import Clips

FOLDER, ANSWER = "search", "@"


@hookimpl
def vfs_views(settings: Settings) -> list[View]:
    """One view of the root. Raises ConfigError."""
    options = Options.load(settings)
    return [Search(options, Index(options.place(settings)))]


@hookimpl
def vfs_indexers(settings: Settings) -> list[Indexer]:
    """Pictures, sound and coded samples. Raises ConfigError."""
    from vfs_search.indexer import Pictures  # what a mount has no use for

    return [Pictures(settings)]


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its options as it was written. depth: components of its path so far."""

    what: Text | Moment
    options: grammar.Options
    depth: int

    @property
    def identity(self) -> str:
        """Equal for equal questions."""
        return f"{self.what!r}\0{self.options!r}"


class Search:
    """The view: one name at the root of the mount."""

    name = "search"

    def __init__(self, options: Options | None = None, index: Index | None = None) -> None:
        self._options = options or Options()
        self._index = index or Index(Path("/nonexistent"))

    def applies(self, place: Place) -> bool:
        """The root of the mount, and nothing else."""
        return place.is_folder and place.path == ""

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """`search`, where it is to be listed: programs that copy a mount would copy it along."""
        return {FOLDER: self._top(place)} if self._options.listed else {}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`search`; None for every other name."""
        return self._top(place) if name == FOLDER else None

    def _top(self, root: Place) -> Directory:
        return _folder(
            {
                "text": _named(partial(self._by_text, root)),
                "frame": _named(partial(self._by_moment, root, is_range=False)),
                "clip": _named(partial(self._by_moment, root, is_range=True)),
            }
        )

    async def _by_text(self, root: Place, component: str) -> Node | None:
        what, options = grammar.parse_text(component)
        return self._query(root, Query(what, options, 3))

    async def _by_moment(self, root: Place, component: str, *, is_range: bool) -> Node | None:
        what = grammar.parse_moment(component, is_range=is_range)
        return self._query(root, Query(what, grammar.Options(), 3))

    def _query(self, root: Place, query: Query) -> Directory:
        """The folder of a query: further options, and the answer."""

        async def entries() -> Mapping[str, Node | None]:
            return {ANSWER: self._answer(root, query)}

        async def lookup(name: str) -> Node | None:
            if name == ANSWER:
                return self._answer(root, query)
            options = query.options.with_option(name)
            return None if options is None else self._query(root, Query(query.what, options, query.depth + 1))

        return Directory(entries=entries, lookup=lookup)

    def _answer(self, root: Place, query: Query) -> Directory:
        return results.folder(root, query.depth + 1, partial(self._clips, root, query))

    async def _clips(self, root: Place, query: Query) -> Clips:
        """The answer, made once for each state of what it is searched in."""
        state = await bytext.fingerprint(root)
        if isinstance(query.what, Moment):
            state += "\0" + await self._index.generation() + "\0" + await _version(root, query.what)

        async def make() -> Clips:
            return await results.clips_of(root, await self._ask(root, query), query.options.limit)

        return await root.derive(f"{results.CODE}\0{query.identity}\0{state}", make, cost=_cost)

    async def _ask(self, root: Place, query: Query) -> Answer:
        if isinstance(query.what, Text):
            return await bytext.answer(root, query.what, query.options)
        snapshot = await self._index.snapshot()
        look = bypicture.clip if query.what.selection.is_range else bypicture.frame
        return await look(root, snapshot, query.what, query.options)


async def _version(root: Place, moment: Moment) -> str:
    """Of the clip or picture that is asked about. Raises NotFound, MediaError, StoreError."""
    node = await root.node(f"{moment.path}@{moment.selection.canonical}.mp4")
    return node.version or "" if isinstance(node, Spliced) else ""


def _cost(clips: Clips) -> int:
    """Bytes in memory, roughly."""
    return 4000 * (1 + len(clips.hits) + len(clips.answer.hits))


def _folder(nodes: Mapping[str, Node]) -> Directory:
    async def entries() -> Mapping[str, Node | None]:
        return nodes

    return Directory(entries=entries)


def _named(lookup: Callable[..., object]) -> Directory:
    """A folder whose names are queries: any can be looked up, none is listed. Raises Malformed at lookup."""

    async def entries() -> Mapping[str, Node | None]:
        return {}

    async def found(name: str) -> Node | None:
        node: Node | None = await lookup(name)  # type: ignore[misc]
        return node

    return Directory(entries=entries, lookup=found)
