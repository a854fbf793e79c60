"""`search/` at the root of a mount: queries as folders, results as playable files.

Names are queries: what is under `search/` is endless, so its folders list nothing but what ends (`@/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from vfs import (
    Bytes,
    Command,
    Directory,
    Inbox,
    Indexer,
    Malformed,
    Node,
    NotFound,
    Place,
    Plugins,
    ReelfsError,
    Settings,
    SmallFiles,
    Spliced,
    VectorIndex,
    View,
    hookimpl,
)
from vfs_search import adopting, bypicture, bytext, grammar, results
from vfs_search.adopting import Adoption
from vfs_search.bypicture import Limits
from vfs_search.folders import fixed, named, volatile
from vfs_search.grammar import Moment, Text
from vfs_search.hits import Answer
from vfs_search.library import Index
from vfs_search.local import RESULTS, Dropped, Local
from vfs_search.looks import Looks
from vfs_search.options import Options
from vfs_search.results import Clips
from vfs_search.saved import Saved

if TYPE_CHECKING:
    from vfs_search.indexer import Pictures

FOLDER, ANSWER = "search", "@"
QUERY, REFRESH = ".query", ".refresh"


@hookimpl
def vfs_views(settings: Settings, plugins: Plugins, files: SmallFiles | None) -> list[View]:
    """One view of the root. Raises ConfigError."""
    options = Options.load(settings)
    limits = Limits(options, options.plan(plugins.descriptors(settings)), Looks(options.wait))
    engines = plugins.vector_indexes(settings)

    def pictures() -> Pictures:
        from vfs_search.indexer import Pictures  # most mounts have no use for it

        return Pictures(settings, plugins.descriptors(settings))

    adoption = Adoption(pictures, min(options.adopt, options.index_budget))
    return [Search(options, options.place(settings), limits, engines, files, adoption)]


@hookimpl
def vfs_indexers(settings: Settings, plugins: Plugins) -> list[Indexer]:
    """Pictures, sound and coded samples. Raises ConfigError."""
    from vfs_search.indexer import Pictures  # what a mount has no use for

    return [Pictures(settings, plugins.descriptors(settings))]


@hookimpl
def vfs_commands() -> list[Command]:
    """`reelfs search`."""
    from vfs_search import commands

    return [Command("search", commands.search)]


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its options as it was written. depth: components of its path so far."""

    what: Text | Moment | Local
    options: grammar.Options
    depth: int

    @property
    def identity(self) -> str:
        """Equal for equal questions."""
        return f"{self.what!r}\0{self.options!r}"


class _Unfinished(Exception):
    """An answer that is not to be remembered: more of it will come."""

    def __init__(self, clips: Clips) -> None:
        super().__init__(clips)
        self.clips = clips


class Search:
    """The view: one name at the root of the mount. folder: where what is kept of this source lies."""

    name = "search"

    def __init__(
        self,
        options: Options,
        folder: Path,
        limits: Limits | None = None,
        engines: Sequence[VectorIndex] = (),
        files: SmallFiles | None = None,
        adoption: Adoption | None = None,
    ) -> None:
        self._options = options
        self._limits = limits or Limits(options, options.plan(), Looks(options.wait))
        self._engines = engines
        self._index = Index(folder)
        self._dropped = Dropped(folder / "drop", options.max_upload_size_mb << 20)
        self._saved = Saved(folder / "saved", files)
        self._staging = folder / "staging"
        self._adoption = adoption
        self._refreshed: dict[str, int] = {}

    def applies(self, place: Place) -> bool:
        """The root of the mount, and nothing else."""
        return place.is_folder and place.path == ""

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """`search`, unless it is not to be listed."""
        return {FOLDER: self._top(place)} if self._options.listed else {}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`search`; None for every other name."""
        return self._top(place) if name == FOLDER else None

    def _top(self, root: Place) -> Directory:
        return fixed(
            {
                "text": named(partial(self._by_text, root)),
                "frame": named(partial(self._by_moment, root, False)),
                "clip": named(partial(self._by_moment, root, True)),
                "drop": self._drop(root),
                "saved": self._all_saved(root),
            }
        )

    async def _by_text(self, root: Place, component: str) -> Node | None:
        what, options = grammar.parse_text(component)
        return self._query(root, Query(what, options, 3))

    async def _by_moment(self, root: Place, is_range: bool, component: str) -> Node | None:
        what = grammar.parse_moment(component, is_range=is_range)
        return self._query(root, Query(what, grammar.Options(), 3))

    # -- what people put there ----------------------------------------------------------------------------

    def _drop(self, root: Place) -> Directory:
        """Files that are looked for; the results of NAME are in `NAME.results`."""

        async def entries() -> Mapping[str, Node | None]:
            return {name: file(name) for name in self._dropped.names()}

        def file(name: str) -> Node | None:
            local = self._dropped.get(name)
            if local is None:
                return None
            version = f"search.drop:{name}:{local.version}"
            return Bytes(produce=local.read, version=version, size=local.size, mtime_ns=local.mtime_ns)

        async def lookup(name: str) -> Node | None:
            local = self._dropped.get(name.removesuffix(RESULTS)) if name.endswith(RESULTS) else None
            return file(name) if local is None else self._query(root, Query(local, grammar.Options(), 3))

        async def receive(name: str, path: Path) -> None:
            await self._dropped.receive(name, path)
            if (local := self._dropped.get(name)) is not None:
                _, plan = self._limits.asking(grammar.Options())
                self._limits.looks.begin_file(root, local, plan)

        inbox = Inbox(
            staging=self._staging,
            limit=self._dropped.limit,
            receive=receive,
            remove=self._dropped.remove,
        )
        return Directory(entries=entries, lookup=lookup, inbox=inbox, ttl=0.0)

    def _all_saved(self, root: Place) -> Directory:
        async def entries() -> Mapping[str, Node | None]:
            return {name: self._one_saved(root, name) for name in await self._saved.names(root)}

        async def lookup(name: str) -> Node | None:
            return None if await self._saved.query(root, name) is None else self._one_saved(root, name)

        inbox = Inbox(
            staging=self._staging,
            limit=0,
            make=partial(self._saved.make, root),
            remove=partial(self._saved.remove, root),
        )
        return Directory(entries=entries, lookup=lookup, inbox=inbox, ttl=0.0)

    def _one_saved(self, root: Place, name: str) -> Directory:
        """`.query` is its text, `.refresh` has it answered anew when it is read, `@/` is the answer."""

        async def refresh() -> bytes:
            self._refreshed[name] = self._refreshed.get(name, 0) + 1
            return b"the next look at @/ asks again\n"

        async def text() -> bytes:
            return f"{await self._saved.query(root, name)}\n".encode()

        async def nodes() -> Mapping[str, Node | None]:
            return {QUERY: volatile(text), REFRESH: volatile(refresh), ANSWER: None}

        async def lookup(entry: str) -> Node | None:
            if entry == ANSWER:
                return self._begun(root, await self._parsed(root, name))
            return (await nodes()).get(entry)

        async def receive(entry: str, file: Path) -> None:
            if entry != QUERY:
                raise Malformed(f"{entry}: a saved question has {QUERY} and nothing else")
            await self._saved.write(root, name, file)
            with suppress(ReelfsError):  # who looks at the answer is told
                self._begin(root, await self._parsed(root, name))

        inbox = Inbox(staging=self._staging, limit=1 << 16, receive=receive)
        return Directory(entries=nodes, lookup=lookup, inbox=inbox, ttl=0.0)

    async def _parsed(self, root: Place, name: str) -> Query:
        """A saved question. Raises Malformed, NotFound."""
        text = await self._saved.query(root, name)
        if text is None:
            raise NotFound(f"no such question: {name}")
        kind, _, rest = text.strip("/").removeprefix(f"{FOLDER}/").partition("/")
        component, *further = [part for part in rest.split("/") if part not in ("", ANSWER)] or [""]
        what: Text | Moment
        if kind == "text":
            what, options = grammar.parse_text(component)
        elif kind in ("frame", "clip"):
            what, options = grammar.parse_moment(component, is_range=kind == "clip"), grammar.Options()
        else:
            raise Malformed(f"{text!r} is no question: text/TERMS, frame/PATH@TIME or clip/PATH@RANGE")
        for option in further:
            known = options.with_option(option)
            if known is None:
                raise Malformed(f"{option} is no option")
            options = known
        return Query(what, options, 3)

    # -- questions and answers ----------------------------------------------------------------------------

    def _query(self, root: Place, query: Query) -> Directory:
        """The folder of a query: further options, and the answer."""

        async def entries() -> Mapping[str, Node | None]:
            return {ANSWER: self._answer(root, query)}

        async def lookup(name: str) -> Node | None:
            if name == ANSWER:
                return self._begun(root, query)
            options = query.options.with_option(name)
            return None if options is None else self._query(root, Query(query.what, options, query.depth + 1))

        return Directory(entries=entries, lookup=lookup)

    def _begun(self, root: Place, query: Query) -> Directory:
        """To name an answer is to ask: it is being looked for when somebody comes to list it."""
        self._begin(root, query)
        return self._answer(root, query)

    def _begin(self, root: Place, query: Query) -> None:
        if not isinstance(query.what, Text):
            trio.lowlevel.spawn_system_task(self._ahead, root, query)

    async def _ahead(self, root: Place, query: Query) -> None:
        """What is wrong is for who lists it; here it would end the daemon."""
        with suppress(Exception):
            await self._clips(root, query)

    def _answer(self, root: Place, query: Query) -> Directory:
        return results.folder(root, query.depth + 1, partial(self._clips, root, query))

    async def _clips(self, root: Place, query: Query) -> Clips:
        """The answer, made once for each state of what it is searched in."""
        state = [await bytext.fingerprint(root), str(sum(self._refreshed.values()))]
        if not isinstance(query.what, Text):
            await self._adopted(root)
            state.append(await self._index.generation())
        if isinstance(query.what, Moment):
            state.append(await _version(root, query.what))

        async def make() -> Clips:
            answer = await self._ask(root, query)
            if not isinstance(query.what, Text):
                answer = self._with_note(answer)
            clips = await results.clips_of(root, answer, query.options.limit)
            if not clips.answer.whole:
                raise _Unfinished(clips)
            return clips

        try:
            return await root.derive("\0".join((results.CODE, query.identity, *state)), make, cost=_cost)
        except _Unfinished as unfinished:
            return unfinished.clips

    async def _ask(self, root: Place, query: Query) -> Answer:
        what, options = query.what, query.options
        if isinstance(what, Text):
            return await bytext.answer(root, what, options)
        snapshot = await self._index.snapshot()
        if snapshot is not None and self._engines:
            snapshot = replace(snapshot, engine=self._engines[0])
        if isinstance(what, Local):
            return await bypicture.local(root, snapshot, what, options, self._limits)
        look = bypicture.clip if what.selection.is_range else bypicture.frame
        return await look(root, snapshot, what, options, self._limits)

    async def _adopted(self, root: Place) -> None:
        """Where nobody on this machine has indexed the library, what lies beside the videos is taken over."""
        if self._adoption is not None:
            snapshot = await self._index.snapshot()
            if snapshot is None or snapshot.listed is None:
                await self._adoption.at(root, self._options.wait)

    def _with_note(self, answer: Answer) -> Answer:
        """What is still to come of indexes that others made."""
        adoption = self._adoption
        if adoption is None or not (adoption.busy or adoption.note):
            return answer
        if adoption.busy:
            told = {**answer.status, "preparing": True, "note": adopting.BUSY}
            return replace(answer, status=told, whole=False)
        return replace(answer, status={**answer.status, "note": adoption.note})


async def _version(root: Place, moment: Moment) -> str:
    """Of the clip or picture that is asked about. Raises NotFound, MediaError, StoreError."""
    node = await root.node(f"{moment.path}@{moment.selection.canonical}.mp4")
    return node.version or "" if isinstance(node, Spliced) else ""


def _cost(clips: Clips) -> int:
    """Bytes in memory, roughly."""
    return 4000 * (1 + len(clips.hits) + len(clips.answer.hits))
