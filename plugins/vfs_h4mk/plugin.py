"""The view of H4MK containers: `game.h4mk/blocks/15`, `seek/5s`, `payload.mp4`, `manifest.json`, ..."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from vfs import (
    Bytes,
    Command,
    Damaged,
    Denied,
    DerivedObject,
    Directory,
    Layout,
    Node,
    NoMedia,
    NotFound,
    Place,
    Settings,
    Spliced,
    Symlink,
    TooBig,
    Unsupported,
    View,
    escape,
    hookimpl,
    in_thread,
    parse_derived,
)
from vfs_h4mk import describe, verify
from vfs_h4mk.chunks import BLOCK_HEAD, META, SAFE, SEEK, Chunk
from vfs_h4mk.container import MAX_CHUNK, Container, open_container
from vfs_h4mk.options import Options
from vfs_h4mk.payload import Payload, kind_of, open_payload
from vfs_h4mk.tables import Seeks, TrackTable

#: Part of every version: changed when the same container would come out as other bytes.
CODE = "h4mk.1"
SUFFIX = ".h4mk"
STORED = "container.h4mk"
#: Bytes of blocks that one `batch/` or `gop/` file joins at most.
MAX_JOINED = 256 << 20
#: Blocks whose stored bytes are asked for together.
READ_TOGETHER = 64
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_BATCH = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})")
_MICROSECONDS = re.compile(r"([0-9]{1,20})us")

T = TypeVar("T")
Make = Callable[[], Awaitable[bytes]]
Nodes = Mapping[str, Node | None]


@hookimpl
def vfs_views(settings: Settings) -> list[View]:
    """The one view of this plugin. Raises ConfigError."""
    return [Containers(Options.load(settings))]


@hookimpl
def vfs_commands() -> list[Command]:
    """`reelfs h4mk pack | inspect | verify | unpack`."""
    from vfs_h4mk.commands import app

    return [Command("h4mk", app)]


class Containers:
    """Everything in one container."""

    name = "h4mk"

    def __init__(self, options: Options) -> None:
        self._options = options

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return not place.is_folder and place.name.lower().endswith(SUFFIX)

    async def is_directory(self, place: Place) -> bool:
        """False for a file that only has the name: it stays an ordinary file."""
        try:
            await open_container(place, self._options)
        except NoMedia:
            return False
        except Unsupported:
            pass  # a directory that says why in verify.json
        return True

    async def entries(self, place: Place) -> Nodes:
        """The parts of a container; what it does not have is not listed."""
        try:
            container = await open_container(place, self._options)
        except Unsupported:
            return dict.fromkeys((STORED, "verify.json"))
        names = ["blocks", "batch", "chunks", STORED, *(f"{name}.json" for name in _DOCUMENTS)]
        names += ["seek", "gop"] if not container.is_kernel and await container.first(SEEK) else []
        names += ["tracks"] if await describe.has_tracks(container) else []
        names += [f"{tag.decode().lower()}.json" for tag in (META, SAFE) if await container.first(tag)]
        kind = await _kind_or_none(container)
        names += ["hls", "dash"] if kind == "mp4" else []
        listed: dict[str, Node | None] = dict.fromkeys(names)
        if kind is not None:
            # Its size may take reading every block: it is settled when the name is looked up, not here.
            listed[f"payload.{kind}"] = Bytes(produce=partial(_whole, container), version=None)
        return listed

    async def resolve(self, place: Place, name: str) -> Node | None:
        """Any of them. Raises NoMedia, Unsupported, Damaged, StoreError."""
        if name == STORED:
            return Spliced(layout=Layout.whole(place.object), mtime_ns=place.mtime_ns)
        try:
            container = await open_container(place, self._options)
        except Unsupported as error:
            return _refused(place, error) if name == "verify.json" else _raise(error)
        return await _Names(container).node(name)


def _raise(error: Exception) -> Node:
    raise error


def _refused(place: Place, error: Unsupported) -> Bytes:
    """The verdict on a container of another version."""

    async def produce() -> bytes:
        return describe.as_json(
            {"valid": False, "status": "invalid", "hash_algorithm": None, "info": str(error)}
        )

    return Bytes(
        produce=produce, version=f"{CODE}:{place.path}:{place.version}:refused", mtime_ns=place.mtime_ns
    )


async def _whole(container: Container) -> bytes:
    payload = await open_payload(container)
    return await payload.read(0, payload.size)


async def _kind_or_none(container: Container) -> str | None:
    """What the blocks join to, by the first of them; None where they cannot be decoded."""
    try:
        return await kind_of(container)
    except (Damaged, Denied, Unsupported, TooBig):
        return None


_DOCUMENTS: Mapping[str, Callable[[Container], Awaitable[dict[str, Any]]]] = {
    "manifest": describe.manifest,
    "verify": verify.verify,
    "stats": describe.stats,
    "conformance": describe.conformance,
}


class _Names:
    """The names in one open container."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._place = container.place

    async def node(self, name: str) -> Node | None:
        """The node of a name at the top."""
        stem, _, kind = name.rpartition(".")
        if kind == "json" and stem in _DOCUMENTS:
            return self._json(stem, partial(_DOCUMENTS[stem], self._container))
        if name in ("meta.json", "safe.json"):
            return await self._text(stem.upper().encode())
        folders: Mapping[str, Callable[[], Directory]] = {
            "blocks": partial(self._blocks_folder, None),
            "batch": self._batches,
            "chunks": self._chunks,
            "gop": self._gops,
            "tracks": self._tracks,
        }
        if name in folders:
            return folders[name]()
        if name == "seek":
            return self._seek_folder("seek", self._container.seeks)
        if name in ("hls", "dash"):
            is_video = await kind_of(self._container) == "mp4"
            return Symlink(target=f"payload.mp4@/{name}", mtime_ns=self._place.mtime_ns) if is_video else None
        if stem == "payload" and kind == await kind_of(self._container):
            return self._payload(await open_payload(self._container))
        return None

    # -- files ----------------------------------------------------------------------------------------

    def _version(self, what: str) -> str:
        place = self._place
        return f"{CODE}:{place.path}:{place.version}:{self._container.name_of(what)}"

    def _bytes(self, what: str, produce: Make, size: int | None = None, *, keep: bool = False) -> Bytes:
        version, mtime = self._version(what), self._place.mtime_ns
        return Bytes(produce=produce, version=version, size=size, keep=keep, mtime_ns=mtime)

    def _json(self, what: str, make: Callable[[], Awaitable[Any]]) -> Bytes:
        async def produce() -> bytes:
            return await in_thread(describe.as_json, await make())

        return self._bytes(what + ".json", produce, keep=True)

    async def _text(self, tag: bytes) -> Node | None:
        chunk = await self._container.first(tag)
        if chunk is None:
            return None
        return self._bytes(tag.decode(), partial(self._container.read_chunk, chunk), chunk.size)

    def _extent(self, chunk: Chunk, skip: int = 0) -> Spliced:
        extent = self._place.extent(chunk.payload + skip, chunk.size - skip)
        return Spliced(layout=Layout((extent,)), mtime_ns=self._place.mtime_ns)

    def _payload(self, payload: Payload) -> Spliced:
        container = self._container
        if container.is_kernel and not container.options.verify_integrity:
            blocks = map(container.chain.block, range(len(container.chain.cores)))
            plain = (self._place.extent(b.payload + BLOCK_HEAD, b.size - BLOCK_HEAD) for b in blocks)
            return Spliced(layout=Layout(plain), mtime_ns=self._place.mtime_ns)
        whole = DerivedObject(
            f"{self._place.object.key}@/{payload.name}",
            payload.size,
            self._version(payload.name),
            self._place.mtime_ns,
            make=payload.read,
            grain=payload.grain,
            sources=(self._place.object,),
        )
        return Spliced(layout=Layout.whole(whole), mtime_ns=self._place.mtime_ns)

    # -- blocks ---------------------------------------------------------------------------------------

    def _blocks_folder(self, only: Sequence[int] | None) -> Directory:
        """`blocks/`; with `only`, of these blocks (a track's)."""

        async def entries() -> Nodes:
            chain = await self._container.walked()
            numbers = range(len(chain.cores)) if only is None else only
            return {name: None for n in numbers for name in (str(n), f"{n}.raw")}

        async def lookup(name: str) -> Node | None:
            number = name.removesuffix(".raw")
            if not _NUMBER.fullmatch(number) or (only is not None and int(number) not in set(only)):
                return None
            return await (self._block(int(number)) if number == name else self._raw(int(number)))

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    async def _block(self, index: int) -> Node:
        """A decoded block. Its size is told where that costs nothing."""
        container = self._container
        if index in container.chain.broken:
            await container.block(index)
        chain = await container.walked(lambda chain: len(chain.cores) > index)
        size = None
        if container.is_kernel and index < len(chain.cores):
            chunk = await container.block(index)
            if not container.options.verify_integrity and chunk.size >= BLOCK_HEAD:
                return self._extent(chunk, BLOCK_HEAD)
            size = chunk.size - BLOCK_HEAD
        elif index >= len(chain.cores):
            await container.block(index)
        return replace(
            self._bytes(f"blocks/{index}", partial(container.decode, index), size),
            pool=container.options.pool,
        )

    async def _raw(self, index: int) -> Node:
        chunk = await self._container.block(index)
        if chunk.size > MAX_CHUNK or not self._container.options.verify_integrity:
            return self._extent(chunk)
        return self._bytes(f"blocks/{index}.raw", partial(self._container.stored, index), chunk.size)

    def _joined(self, what: str, first: int, last: int) -> Bytes:
        async def produce() -> bytes:
            parts: list[bytes] = []
            for index in range(first, last + 1):
                if (index - first) % READ_TOGETHER == 0:
                    await self._container.ahead(index, min(index + READ_TOGETHER - 1, last))
                parts.append(await self._container.decoded(index))
                if sum(map(len, parts)) > MAX_JOINED:
                    raise TooBig(f"{what} of {self._place.path} has more than {MAX_JOINED} bytes")
            return await in_thread(b"".join, parts)

        return self._bytes(what, produce)

    def _batches(self) -> Directory:
        """`batch/10-19`: blocks 10 to 19, joined. Endless, so none is listed."""

        async def entries() -> Nodes:
            return {}

        async def lookup(name: str) -> Node | None:
            if not (match := _BATCH.fullmatch(name)):
                return None
            first, last = int(match[1]), int(match[2])
            if last < first:
                return None
            await self._container.walked(lambda chain: len(chain.cores) > last)
            if last >= len(self._container.chain.cores):
                await self._container.block(last)
            return self._joined(f"batch/{name}", first, last)

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    def _gops(self) -> Directory:
        """`gop/K`: the blocks from seek entry K to the next, joined."""

        async def spans() -> list[tuple[int, int] | None]:
            seeks = await self._container.seeks()
            count = len((await self._container.walked()).cores)
            return _group(seeks, count) if seeks else []

        async def entries() -> Nodes:
            return {str(n): None for n, span in enumerate(await spans()) if span is not None}

        async def lookup(name: str) -> Node | None:
            if not _NUMBER.fullmatch(name):
                return None
            found = await spans()
            span = found[int(name)] if int(name) < len(found) else None
            return self._joined(f"gop/{name}", *span) if span else None

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    # -- chunks, seeks, tracks ------------------------------------------------------------------------

    def _chunks(self) -> Directory:
        async def entries() -> Nodes:
            chain = await self._container.walked()
            return {_chunk_name(chunk): self._extent(chunk) for chunk in chain}

        async def lookup(name: str) -> Node | None:
            number = name.partition("-")[0]
            chain = await self._container.walked(
                lambda chain: number.isdecimal() and len(chain) > int(number)
            )
            if not (number.isascii() and number.isdecimal()) or int(number) >= len(chain):
                return None
            chunk = chain[int(number)]
            return self._extent(chunk) if _chunk_name(chunk) == name else None

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    def _seek_folder(self, what: str, table: Callable[[], Awaitable[Seeks | None]]) -> Directory:
        """`seek/T` is a link to the block of the key frame at or before T, `seek/T.json` tells about it."""

        async def entries() -> Nodes:
            found = await table()
            return {} if found is None else {"table.json": None}

        async def lookup(name: str) -> Node | None:
            found = await table()
            if found is None:
                return None
            if name == "table.json":
                return self._json(f"{what}/table", partial(_ready, describe.seek_table(found)))
            stem = name.removesuffix(".json")
            pts = _microseconds(stem)
            if pts is None:
                return None
            answer = describe.seek_answer(found, pts)
            if stem != name:
                return self._json(f"{what}/{pts}us", partial(_ready, answer))
            if answer["block_index"] is None:
                raise NotFound(f"which block holds {name} is not known")
            return Symlink(target=f"../blocks/{answer['block_index']}", mtime_ns=self._place.mtime_ns)

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    def _tracks(self) -> Directory:
        async def entries() -> Nodes:
            return {_track_name(name): None for name in await describe.tracks(self._container)}

        async def lookup(name: str) -> Node | None:
            found = {_track_name(n): track for n, track in (await describe.tracks(self._container)).items()}
            return self._track(found[name]) if name in found else None

        return Directory(entries=entries, lookup=lookup, mtime_ns=self._place.mtime_ns)

    def _track(self, track: TrackTable) -> Directory:
        what = f"tracks/{_track_name(track.track_id)}"
        parts: Nodes = {
            "manifest.json": self._json(what, partial(_ready, describe.track_manifest(track))),
            "blocks": self._blocks_folder(track.blocks),
            "seek": self._seek_folder(f"{what}/seek", partial(_ready, track.seeks)),
        }
        return Directory(entries=partial(_ready, parts), mtime_ns=self._place.mtime_ns)


async def _ready(value: T) -> T:
    return value


def _chunk_name(chunk: Chunk) -> str:
    """`0007-CORE`; what a name cannot hold is escaped."""
    return f"{chunk.number:03d}-{escape(chunk.tag.decode('latin-1'))}"


def _track_name(track_id: str) -> str:
    """JSON can say what no text can: half a character, which is shown as `?`."""
    return escape(track_id.encode("utf-8", "replace").decode()) or "%"


def _microseconds(text: str) -> int | None:
    """`700000us`, or an instant of the grammar in seconds; rounded down."""
    if match := _MICROSECONDS.fullmatch(text):
        return int(match[1])
    derived = parse_derived(f"{text}.json")
    if derived is None or derived.selection.is_range or derived.selection.start.kind != "time":
        return None
    return int(derived.selection.start.value * 1_000_000)


def _group(seeks: Seeks, count: int) -> list[tuple[int, int] | None]:
    """The blocks (first, last) of each entry as stored: up to the next key frame's, or the end."""
    begins = sorted({entry.block for entry in seeks.entries if entry.block is not None})
    ends = {begin: (begins[n + 1] if n + 1 < len(begins) else count) - 1 for n, begin in enumerate(begins)}
    return [None if e.block is None else (e.block, ends[e.block]) for e in seeks.entries]
