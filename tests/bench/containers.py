"""H4MK containers: decoding against a plain loop, one block against the whole, a block against any file."""

from __future__ import annotations

import random
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import trio
from vfs_h4mk.codecs import REFERENCE
from vfs_h4mk.pack import Writer, export_meta

from tests.bench.mounted import reelfs
from tests.bench.result import Row, at_least, at_most, figure, middle
from vfs import Settings, open_runtime

KIB, MIB = 1 << 10, 1 << 20
#: 128 blocks of 64 KiB that code to about their own size: a container of 8.5 MB.
BLOCKS, BLOCK = 128, 64 * KIB
ROUNDS = 15


def containers() -> list[Row]:
    """Blocks of an H4MK container of 8.5 MB. The loop is Python's, byte by byte, as the format's own reader
    decodes; "the whole" is that loop over every block, which is what its reader does for any of them."""
    rng = random.Random(1)
    blocks = [_block(rng) for _ in range(BLOCKS)]
    noise, long = rng.randbytes(BLOCK), bytes(n // 300 % 256 for n in range(BLOCK))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "x.h4mk").open("wb") as out:
            writer = Writer(out)
            for block in blocks:
                writer.block(block)
            writer.finish([], export_meta(BLOCK, 30.0, 1), {})
        (folder / "block.bin").write_bytes(blocks[77])
        data = (folder / "x.h4mk").read_bytes()
        whole = _timed(lambda: _whole(data))
        cold = _median(lambda: trio.run(_cold, folder, blocks[77]), 5)
        warm, plain = _through_a_mount(folder)
    return [
        figure("the container", len(data) / 1e6, "MB"),
        at_least("decoding noise (as video is), against the loop", _against_the_loop(noise), 50),
        at_least("decoding long runs, against the loop", _against_the_loop(long), 50),
        figure("decoding runs of 1 to 3 bytes, against the loop", _against_the_loop(blocks[0]), "x"),
        at_least("one block, nothing known before, against parsing the whole", whole / cold, 100),
        at_most("a warm block through the mount, against any file of its size", warm / plain, 2, "x"),
        figure("that block", warm * 1e3, "ms"),
    ]


def _block(rng: random.Random) -> bytes:
    """Half of its runs are one byte long."""
    out = bytearray()
    while len(out) < BLOCK:
        out += bytes([rng.randrange(256)]) * rng.choice((1, 2, 3))
    return bytes(out[:BLOCK])


def _against_the_loop(block: bytes) -> float:
    payload = REFERENCE.encode(block)
    ours = _median(lambda: REFERENCE.decode(payload, BLOCK))
    return _median(lambda: _loop(payload), 3) / ours


def _loop(payload: bytes) -> bytes:
    out = bytearray()
    for at in range(0, len(payload), 2):
        for _ in range(payload[at + 1]):
            out.append(payload[at])
    return bytes(out)


def _whole(data: bytes) -> None:
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        payload = data[at + 12 : at + 12 + size]
        assert zlib.crc32(payload) == int.from_bytes(data[at + 8 : at + 12], "big")
        if data[at : at + 4] == b"CORE":
            _loop(payload)
        at += 12 + size


async def _cold(folder: Path, expected: bytes) -> None:
    """A tree opened for this block alone; opening it does not count."""
    async with open_runtime(Settings.from_dict({"source": str(folder)})) as runtime:
        began = time.perf_counter()
        found = await runtime.tree.resolve("x.h4mk/blocks/77")
        assert await runtime.tree.settle(found) == expected
        _cold_seconds.append(time.perf_counter() - began)


_cold_seconds: list[float] = []


def _median(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    _cold_seconds.clear()
    times = [_timed(work) for _ in range(rounds)]
    return middle(_cold_seconds or times)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _through_a_mount(folder: Path) -> tuple[float, float]:
    """Seconds (median) to open and read block 77, and a file of the same bytes, both read before."""
    with tempfile.TemporaryDirectory() as work, reelfs(str(folder), Path(work), {}) as mount:
        block, plain = mount.path / "x.h4mk" / "blocks" / "77", mount / "block.bin"
        assert block.read_bytes() == plain.read_bytes()
        rounds = [(_timed(block.read_bytes), _timed(plain.read_bytes)) for _ in range(60)]
    return middle([a for a, _ in rounds]), middle([b for _, b in rounds])
