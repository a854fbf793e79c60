"""One stored container: its chain, kept for its version; its texts; its blocks, checked and decoded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from vfs import Damaged, Denied, NoMedia, OutOfRange, Place, TooBig, Unsupported, in_thread
from vfs_h4mk import chunks, codecs, tables, walk
from vfs_h4mk.chunks import BLOCK_HEAD, HEADER, KERNEL, META, SAFE, SEEK, Chain, Chunk, Framing
from vfs_h4mk.keys import Keys, Ratchet, decrypt, hkdf, is_encrypted, unmask
from vfs_h4mk.options import Options
from vfs_h4mk.tables import Seeks

T = TypeVar("T")

MIB = 1 << 20
#: Files up to this size are walked whole at once: their chain costs less than asking twice.
SMALL = 1 * MIB
#: Chains are kept on disk once they have grown by so many chunks; one walk goes on for so many at most
#: before it is looked at.
WORTH_KEEPING, KEEP_EVERY = 256, 16384
KEPT_CHAIN = "h4mk.chain.1"
#: A chunk that is checked or decoded whole has at most so many bytes.
MAX_CHUNK = 64 * MIB
#: Blocks asked for together are read together, up to so many bytes.
AHEAD = 8 * MIB
#: Bytes read at a time where every block is looked at.
SCAN_WINDOW = 4 * MIB
#: Stored bytes read to learn the decoded sizes of all blocks, where META.block_size does not say them.
MAX_SCAN = 256 * MIB


@dataclass(frozen=True)
class Texts:
    """META and SAFE as they count: defaults where they are absent, damaged or no objects."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    safe: Any = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def compression(self) -> Mapping[str, Any]:
        """META.compression, an object."""
        told = self.meta.get("compression")
        return told if isinstance(told, dict) else {}

    @property
    def is_masked(self) -> bool:
        """META.masked."""
        return bool(self.meta.get("masked"))

    @property
    def is_encrypted(self) -> bool:
        """META.encryption, or META.encrypted."""
        return bool(self.meta.get("encryption") or self.meta.get("encrypted"))

    @property
    def is_sealed(self) -> bool:
        """Made by an engine that nothing public decodes."""
        told = self.compression
        return told.get("engine") == "core" and bool(told.get("opaque")) and bool(told.get("sealed"))


@dataclass(eq=False)
class Container:
    """An open container, shared by all who read this version. Made by `open_container`."""

    place: Place
    options: Options
    chain: Chain
    keys: Keys
    lock: trio.Lock = field(default_factory=trio.Lock)
    texts_known: Texts | None = None
    ratchet: Ratchet | None = None
    tail_known: bool = False
    tail: Chain | None = None
    kept_at: int = 0

    @property
    def framing(self) -> Framing:
        """Its variant."""
        return self.chain.framing

    @property
    def is_kernel(self) -> bool:
        """media-kernel-le."""
        return self.framing is KERNEL

    # -- the chain ------------------------------------------------------------------------------------

    async def walked(self, enough: Callable[[Chain], bool] = lambda chain: False) -> Chain:
        """The chain, walked until `enough`, or whole."""
        begun = len(self.chain)
        while not self.chain.ended and not enough(self.chain):
            async with self.lock:
                await walk.walk(self.place, self.chain, _or_so_many(enough, len(self.chain) + KEEP_EVERY))
                arrived = self.chain.ended or enough(self.chain)
                await self._keep(far=arrived and len(self.chain) - begun >= WORTH_KEEPING)
        return self.chain

    async def _keep(self, *, far: bool) -> None:
        """A long way is not walked twice: what is known of it goes to disk, now and then and at its end."""
        grown = len(self.chain) - self.kept_at
        if grown and (far or grown >= max(WORTH_KEEPING, self.kept_at // 4)):
            self.kept_at = len(self.chain)
            await self.place.keep(KEPT_CHAIN, await in_thread(self.chain.to_bytes))

    async def block(self, index: int) -> Chunk:
        """The chunk of a block. Raises OutOfRange; Damaged where its framing is broken."""
        chain = await self.walked(lambda chain: len(chain.cores) > index)
        if index >= len(chain.cores):
            raise OutOfRange(f"{self.place.path} has {len(chain.cores)} blocks, not block {index}")
        if index in chain.broken:
            raise Damaged(f"block {index} of {self.place.path} is damaged: its chunk is cut or its size lies")
        return chain.block(index)

    async def first(self, tag: bytes) -> Chunk | None:
        """The first chunk of a tag: where the walk has come by, else by the tail, else by walking on."""
        if not self.chain.ended and (chunk := self.chain.first(tag)) is not None:
            return chunk
        if not self.chain.ended and tag in (SEEK, META, SAFE, chunks.VERI):
            if not self.tail_known:
                async with self.lock:
                    self.tail = await walk.tail(self.place, self.framing)
                self.tail_known = True
            if self.tail is not None and (chunk := self.tail.first(tag)) is not None:
                return chunk
        return (await self.walked()).first(tag)

    async def read_chunk(self, chunk: Chunk, *, check: bool = True) -> bytes:
        """The payload as stored. Raises Damaged where the CRC does not fit, TooBig."""
        if chunk.size > MAX_CHUNK:
            raise TooBig(f"{self.place.path}: a chunk of {chunk.size} bytes; {MAX_CHUNK} are read whole")
        framed = await self.place.read(chunk.header, chunk.end - chunk.header)
        return await _in_thread_if_large(partial(self._payload, chunk, framed, check=check), len(framed))

    def _payload(self, chunk: Chunk, framed: bytes, *, check: bool) -> bytes:
        if check and not self.framing.crc_fits(framed):
            raise Damaged(f"{self.place.path}: the CRC of the {chunk.tag!r} chunk at {chunk.header} is wrong")
        return framed[HEADER : HEADER + chunk.size]

    # -- texts ----------------------------------------------------------------------------------------

    async def texts(self) -> Texts:
        """META and SAFE."""
        if self.texts_known is None:
            meta, first = await self._json(META)
            safe, second = await self._json(SAFE)
            if meta is not None and (tables.is_raw(meta) or not isinstance(meta, dict)):
                first = first or "META is no JSON object: defaults count"
            if tables.is_raw(safe):
                second = second or "SAFE is not JSON"
            usable = meta if isinstance(meta, dict) and not tables.is_raw(meta) else {}
            problems = tuple(filter(None, (first, second)))
            self.texts_known = Texts(usable, {} if safe is None else safe, problems)
        return self.texts_known

    async def _json(self, tag: bytes) -> tuple[Any, str | None]:
        chunk = await self.first(tag)
        if chunk is None:
            return None, None
        if chunk.size > tables.MAX_JSON:
            return None, f"{tag.decode()} has {chunk.size} bytes, {tables.MAX_JSON} are read: defaults count"
        try:
            payload = await self.read_chunk(chunk)
        except Damaged as error:
            return None, str(error)
        return await _in_thread_if_large(partial(tables.parse_json, payload), len(payload)), None

    # -- blocks ---------------------------------------------------------------------------------------

    async def stored(self, index: int) -> bytes:
        """A block as stored, its CRC checked. Raises OutOfRange, Damaged."""
        return await self.read_chunk(await self.block(index))

    async def decoded(self, index: int) -> bytes:
        """A decoded block. Raises OutOfRange, Damaged, Denied (no key, sealed), TooBig."""
        name = self.name_of(f"block.{index}")
        return await self.place.derive(name, partial(self.decode, index), pool=self.options.pool)

    async def decode(self, index: int) -> bytes:
        """As `decoded`, for what keeps it itself."""
        chunk = await self.block(index)
        if chunk.size > 2 * self.options.max_block_size + 4096:
            raise TooBig(f"block {index} is stored in {chunk.size} bytes, {self._limit_text()}")
        texts = await self.texts()
        payload = await self.read_chunk(chunk, check=self.options.verify_integrity)
        return await self._worked(partial(self._decode, payload, index, texts), 16 * len(payload))

    async def _worked(self, work: Callable[[], T], size: int) -> T:
        """Something with a block: in a thread where that is large, or its key may be far."""
        return await in_thread(work) if self.ratchet is not None else await _in_thread_if_large(work, size)

    async def ahead(self, first: int, last: int) -> None:
        """Have the store's bytes of blocks that will be decoded one by one, in few requests."""
        if last > first and not self.chain.broken & set(range(first, last + 1)):
            start, end = (await self.block(first)).header, (await self.block(last)).end
            await self.place.read(start, min(end - start, AHEAD))

    def _limit_text(self) -> str:
        return f"max_block_size is {self.options.max_block_size}: raise it in [h4mk]"

    def _decode(self, payload: bytes, index: int, texts: Texts) -> bytes:
        plain, codec = self._plain(payload, index, texts)
        try:
            data = codec.decode(plain, self.options.max_block_size)
        except (Damaged, TooBig) as error:
            raise type(error)(f"block {index} of {self.place.path}: {error}") from None
        if texts.is_masked and not self.is_kernel:
            if self.keys.master_key is None:
                raise Denied(f"{self.place.path} is masked: set its master_key in the key file of [h4mk]")
            return unmask(data, self.keys.master_key, index)
        return data

    def _plain(self, payload: bytes, index: int, texts: Texts) -> tuple[bytes, codecs.Codec]:
        """What the codec decodes, and the codec. Raises Denied, Damaged, Unsupported."""
        if self.is_kernel:
            if payload[:4] != b"H4TB" or len(payload) < BLOCK_HEAD:
                raise Damaged(f"block {index} of {self.place.path} has no block head")
            return payload[BLOCK_HEAD:], codecs.STORED
        if texts.is_encrypted or is_encrypted(payload):
            if self.ratchet is None:
                raise Denied(
                    f"{self.place.path} is encrypted: set its shared_secret in the key file of [h4mk]"
                )
            payload = decrypt(payload, self.ratchet, index, texts.meta)
        engine = texts.compression.get("engine", codecs.REFERENCE.engine)
        codec = codecs.known().get(engine) if isinstance(engine, str) else None
        if codec is None and texts.is_sealed:
            raise Denied(f"{self.place.path} is sealed by the engine {engine!r}, and no plugin decodes it")
        if codec is None:
            raise Unsupported(f"{self.place.path}: no plugin decodes the engine {engine!r}")
        return payload, codec

    def size_of(self, payload: bytes, index: int, texts: Texts) -> int:
        """Bytes that a stored block decodes to. Raises what decoding would."""
        plain, codec = self._plain(payload, index, texts)
        if texts.is_masked and not self.is_kernel and self.keys.master_key is None:
            raise Denied(f"{self.place.path} is masked: set its master_key in the key file of [h4mk]")
        return codec.decoded_size(plain)

    async def sizes(self) -> NDArray[np.int64]:
        """Decoded bytes of every block, -1 = unknown. By META.block_size where first and last block agree
        with it, else by reading all blocks once; kept. Raises TooBig where that were too much.
        """
        return await self.place.derive(self.name_of("sizes"), self._sizes)

    async def _sizes(self) -> NDArray[np.int64]:
        chain, texts = await self.walked(), await self.texts()
        count = len(chain.cores)
        if self.is_kernel:
            return await in_thread(_kernel_sizes, chain)
        step = tables.block_size(texts.meta)
        if step is not None and count:
            ends = [await self._size(index) for index in dict.fromkeys((0, count - 1))]
            if (count == 1 or ends[0] in (step, None)) and (ends[-1] is None or ends[-1] <= step):
                found = np.full(count, step, np.int64)
                found[-1] = -1 if ends[-1] is None else ends[-1]
                return found
        stored = sum(chunk.size for chunk in map(chain.block, range(count)))
        if stored > MAX_SCAN:
            raise TooBig(f"{self.place.path}: {stored} bytes must be read to know the sizes of its blocks")
        name = self.name_of("sizes")
        if (kept := await self.place.kept(name)) is not None and len(kept) == 8 * count:
            return np.frombuffer(kept, np.int64)
        found = np.full(count, -1, np.int64)
        async for index, framed in self.blocks_in_windows():
            found[index] = await self._worked(partial(self._size_or_none, framed, index, texts), len(framed))
        if stored > SMALL:
            await self.place.keep(name, found.tobytes())
        return found

    async def _size(self, index: int) -> int | None:
        """The decoded size of one block, None where it cannot be told."""
        try:
            chunk = await self.block(index)
            framed = await self.place.read(chunk.header, chunk.end - chunk.header)
        except Damaged:
            return None
        size = await self._worked(partial(self._size_or_none, framed, index, await self.texts()), len(framed))
        return None if size < 0 else size

    def _size_or_none(self, framed: bytes, index: int, texts: Texts) -> int:
        if not self.framing.crc_fits(framed):
            return -1
        payload = framed[HEADER : len(framed) - self.framing.after]
        try:
            return self.size_of(payload, index, texts)
        except (Damaged, Denied, Unsupported):
            return -1

    async def blocks_in_windows(self) -> AsyncIterator[tuple[int, bytes]]:
        """Every block that is whole, framed, few megabytes at a time."""
        chain = await self.walked()
        for first, last in _windows(chain):
            start = chain.block(first).header
            data = await self.place.read(start, chain.block(last).end - start)
            for index in range(first, last + 1):
                if index not in chain.broken:
                    chunk = chain.block(index)
                    yield index, data[chunk.header - start : chunk.end - start]

    async def seeks(self) -> Seeks | None:
        """The SEEK table with blocks, None where there is none that can be read."""
        return await self.place.derive(self.name_of("seeks"), self._seeks, cost=lambda _: MIB)

    async def _seeks(self) -> Seeks | None:
        chunk = await self.first(SEEK)
        if chunk is None or self.is_kernel:
            return None
        try:
            found = await in_thread(tables.parse_seek, await self.read_chunk(chunk))
        except Damaged:
            return None
        if found is None or not found.entries:
            return found
        chain = await self.walked()
        try:
            sizes = await self.sizes()
        except TooBig:
            sizes = None
        meta = (await self.texts()).meta
        return await in_thread(tables.map_offsets, found, sizes, meta, len(chain.cores))

    def name_of(self, what: str) -> str:
        """The name under which something of this container is kept; the keys are part of what makes it."""
        return f"h4mk.1.{what}.{key_mark(self.keys)}.{int(self.options.verify_integrity)}"


def _kernel_sizes(chain: Chain) -> NDArray[np.int64]:
    found = [
        -1 if index in chain.broken else max(chain.block(index).size - BLOCK_HEAD, 0)
        for index in range(len(chain.cores))
    ]
    return np.array(found, np.int64)


def _windows(chain: Chain) -> list[tuple[int, int]]:
    """Runs of blocks (first, last) that are read together."""
    found: list[tuple[int, int]] = []
    for index in range(len(chain.cores)):
        if chain.block(index).size > MAX_CHUNK:
            continue
        if found and found[-1][1] == index - 1:
            first, _ = found[-1]
            if chain.block(index).end - chain.block(first).header <= SCAN_WINDOW:
                found[-1] = (first, index)
                continue
        found.append((index, index))
    return found


def key_mark(keys: Keys) -> str:
    """Tells keys apart in names of what is kept, and does not tell them."""
    held = [key for key in (keys.master_key, keys.shared_secret) if key is not None]
    return ".".join(hkdf(key, b"reelfs cache name", 6).hex() for key in held) or "none"


async def open_container(place: Place, options: Options) -> Container:
    """The container of a stored file, kept for its version.

    Raises NoMedia for a file that is none, Unsupported for an unknown version, StoreError.
    """
    return await place.derive(
        f"h4mk.container.1.{key_mark(options.keys.of(place.path))}",
        partial(_open, place, options),
        cost=lambda _: MIB,
    )


async def _open(place: Place, options: Options) -> Container:
    head = await place.read(0, place.size if place.size <= SMALL else walk.FIRST_WINDOW)
    framing = chunks.framing_of(head)
    if place.size < framing.start + framing.footer:
        raise NoMedia(f"{place.path} ends in its own head")
    keys = options.keys.of(place.path)
    secret = keys.shared_secret
    chain = await _kept_chain(place, framing) if place.size > SMALL else None
    if chain is None:
        chain = Chain(framing, place.size)
        chain.feed(head, 0)
    container = Container(place, options, chain, keys, ratchet=Ratchet(secret) if secret else None)
    if place.size <= SMALL:
        await container.walked()
    return container


def _or_so_many(enough: Callable[[Chain], bool], most: int) -> Callable[[Chain], bool]:
    return lambda chain: enough(chain) or len(chain) >= most


async def _kept_chain(place: Place, framing: Framing) -> Chain | None:
    """The chain as far as an earlier mount walked it."""
    data = await place.kept(KEPT_CHAIN)
    if data is None:
        return None
    try:
        return await in_thread(Chain.from_bytes, framing, place.size, data)
    except ValueError:
        return None


async def _in_thread_if_large(work: Callable[[], T], size: int) -> T:
    return await in_thread(work) if size > 256 * 1024 else work()
