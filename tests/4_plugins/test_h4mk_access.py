"""What paths of a large container cost, counted at the store: few requests, an index without payloads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from vfs_h4mk.pack import Writer, export_meta, export_seeks

import vfs
from vfs import Bytes, Runtime, Settings, Spliced, StoredObject, open_runtime
from vfs.storage.local import LocalStore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Remote(LocalStore):
    """A folder as if it were far away, with a log of its reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: list[tuple[int, int]] = []

    @property
    def remote(self) -> bool:
        return True

    async def read(self, stored: StoredObject, offset: int, length: int, arriving: Any = None) -> Any:
        self.reads.append((offset, length))
        return await super().read(stored, offset, length)


@dataclass
class Cost:
    """Requests and bytes since it was made."""

    store: Remote
    begin: int = field(init=False)

    def __post_init__(self) -> None:
        self.begin = len(self.store.reads)

    @property
    def gets(self) -> int:
        return len(self.store.reads) - self.begin

    @property
    def bytes(self) -> int:
        return sum(length for _, length in self.store.reads[self.begin :])


async def content(runtime: Runtime, path: str) -> bytes:
    found = await runtime.tree.resolve(path)
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


def run(folder: Path, body: Callable[[Runtime, Remote], Awaitable[None]], cache: Path | None = None) -> None:
    async def main() -> None:
        store = Remote(folder)
        told = {"source": str(folder), "cache_dir": str(cache) if cache else "none"}
        async with open_runtime(Settings.load(told, environ={}), store=store) as runtime:
            await body(runtime, store)

    trio.run(main)


def sparse(path: Path, blocks: int, size: int) -> None:
    """A container of `blocks` blocks of `size` stored bytes, all holes but the headers and some blocks.

    A stored block is zeros (pairs of value 0 and run 0: an empty block), the first and the last have bytes.
    """
    hole = zlib.crc32(bytes(size))
    solid = bytes((7, 100)) * (size // 2)
    with path.open("wb") as out:
        out.write(b"H4MK" + struct.pack(">HH", 1, 0))
        for index in range(blocks):
            filled = index in (0, blocks - 1)
            out.write(b"CORE" + struct.pack(">II", size, zlib.crc32(solid) if filled else hole))
            if filled:
                out.write(solid)
            else:
                out.seek(size, os.SEEK_CUR)
        for tag, payload in (
            (b"SEEK", struct.pack(">I", 0)),
            (b"META", b'{"project":"big"}'),
            (b"SAFE", b"{}"),
        ):
            out.write(tag + struct.pack(">II", len(payload), zlib.crc32(payload)) + payload)


@pytest.mark.parametrize(
    "blocks", [3_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_a_sparse_container_of_up_to_10_gib(tmp_path: Path, blocks: int) -> None:
    """First block in at most 3 GETs; the index is walked without payloads, kept on disk, and then the last
    block costs one GET, in this mount and in the next."""
    folder, cache = tmp_path / "bucket", tmp_path / "cache"
    folder.mkdir()
    size = 107_374
    sparse(folder / "big.h4mk", blocks, size)
    assert (folder / "big.h4mk").stat().st_size > blocks / 100_000 * 10 * GIB
    expected = bytes([7]) * (size // 2 * 100)

    async def first(runtime: Runtime, store: Remote) -> None:
        cost = Cost(store)
        assert await content(runtime, "big.h4mk/blocks/0") == expected
        assert cost.gets <= 3
        assert cost.bytes <= 64 * KIB + 64 * KIB + size + 1 * KIB

    async def walk(runtime: Runtime, store: Remote) -> None:
        cost = Cost(store)
        found = await runtime.tree.resolve(f"big.h4mk/blocks/{blocks - 1}.raw")
        assert found.size == size
        assert cost.bytes < blocks * 32  # headers alone: no payload was read
        cost = Cost(store)
        assert await content(runtime, f"big.h4mk/blocks/{blocks - 1}") == expected
        assert cost.gets <= 2  # the block, and the tail for META

    async def again(runtime: Runtime, store: Remote) -> None:
        await content(runtime, "big.h4mk/meta.json")
        cost = Cost(store)
        assert await content(runtime, f"big.h4mk/blocks/{blocks - 1}") == expected
        assert cost.gets == 1

    run(folder, first, cache)
    run(folder, walk, cache)
    run(folder, again, cache)


def test_listing_a_large_container_reads_its_ends_alone(tmp_path: Path) -> None:
    sparse(tmp_path / "big.h4mk", 2_000, 107_374)

    async def body(runtime: Runtime, store: Remote) -> None:
        cost = Cost(store)
        names = await runtime.tree.entries(await runtime.tree.resolve("big.h4mk"))
        assert {"blocks", "payload.bin", "manifest.json", "meta.json", "seek"} <= set(names)
        assert cost.gets <= 4
        assert cost.bytes < 512 * KIB

    run(tmp_path, body)


def packed(blocks: list[bytes], block_size: int = 64 * KIB) -> bytes:
    out = io.BytesIO()
    writer = Writer(out)
    for block in blocks:
        writer.block(block)
    writer.finish(export_seeks(writer.sizes, 30.0, 4), export_meta(block_size, 30.0, 4), {"policy": "none"})
    return out.getvalue()


def noise(number: int, size: int) -> bytes:
    return (hashlib.sha256(b"%d" % number).digest() * (size // 32 + 1))[:size]


def test_a_small_container_is_one_get(tmp_path: Path) -> None:
    blocks = [noise(n, 4096) for n in range(8)]
    (tmp_path / "small.h4mk").write_bytes(packed(blocks, 4096))

    async def body(runtime: Runtime, store: Remote) -> None:
        cost = Cost(store)
        manifest = json.loads(await content(runtime, "small.h4mk/manifest.json"))
        assert manifest["blocks"] == 8
        assert [row["block_index"] for row in manifest["seek"]] == [0, 4]
        for index, block in enumerate(blocks):
            assert await content(runtime, f"small.h4mk/blocks/{index}") == block
        assert await content(runtime, "small.h4mk/gop/1") == b"".join(blocks[4:])
        assert await content(runtime, "small.h4mk/payload.bin") == b"".join(blocks)
        assert cost.gets <= 2

    run(tmp_path, body)


def test_neighbouring_blocks_are_read_together(tmp_path: Path) -> None:
    blocks = [noise(n, 64 * KIB) for n in range(40)]
    (tmp_path / "some.h4mk").write_bytes(packed(blocks))

    async def body(runtime: Runtime, store: Remote) -> None:
        await content(runtime, "some.h4mk/meta.json")
        await content(runtime, "some.h4mk/stats.json")
        cost = Cost(store)
        assert await content(runtime, "some.h4mk/batch/10-19") == b"".join(blocks[10:20])
        assert cost.gets <= 1

    run(tmp_path, body)


def test_a_block_larger_than_the_limit_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "large.h4mk").write_bytes(packed([bytes(2 * MIB), noise(1, 1000)], 2 * MIB))

    async def main() -> None:
        settings = Settings.from_dict({"source": str(tmp_path), "plugin": {"h4mk": {"max_block_size": MIB}}})
        async with open_runtime(settings) as runtime:
            with pytest.raises(vfs.TooBig, match="max_block_size is 1048576"):
                await content(runtime, "large.h4mk/blocks/0")
            assert await content(runtime, "large.h4mk/blocks/1") == noise(1, 1000)
            assert len(await content(runtime, "large.h4mk/blocks/0.raw")) > 0

    trio.run(main)


@pytest.mark.parametrize("verify", [True, False])
def test_a_flipped_byte_is_served_only_where_checks_are_off(tmp_path: Path, verify: bool) -> None:
    body = bytearray(packed([noise(n, 4096) for n in range(3)], 4096))
    body[8 + 12 + 100] ^= 1
    (tmp_path / "x.h4mk").write_bytes(body)

    async def main() -> None:
        settings = Settings.from_dict(
            {"source": str(tmp_path), "plugin": {"h4mk": {"verify_integrity": verify}}}
        )
        async with open_runtime(settings) as runtime:
            if verify:
                with pytest.raises(vfs.Damaged, match="CRC"):
                    await content(runtime, "x.h4mk/blocks/0")
            else:
                assert await content(runtime, "x.h4mk/blocks/0") != noise(0, 4096)
            assert await content(runtime, "x.h4mk/blocks/1") == noise(1, 4096)

    trio.run(main)
