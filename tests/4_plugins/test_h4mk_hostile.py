"""Mutated containers: no crash, no hang, no wrong block where blocks are checked."""

from __future__ import annotations

import base64
import io
import random
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from vfs_h4mk import chunks, container, describe, verify
from vfs_h4mk.keys import CIPHER_MAGIC, KeyFile, Keys, Ratchet
from vfs_h4mk.options import Options
from vfs_h4mk.pack import Writer, export_meta, export_seeks
from vfs_h4mk.payload import open_payload
from vfs_h4mk.plugin import _Names

import vfs
from vfs import Damaged, ReelfsError

sys.path.insert(0, str(Path(__file__).parent))
from mp4_places import MemoryPlace

SHARED = Path(__file__).resolve().parents[3] / "shared" / "h4mk"
SECONDS = 1.0


def packed(blocks: list[bytes]) -> bytes:
    out = io.BytesIO()
    writer = Writer(out)
    for block in blocks:
        writer.block(block)
    writer.finish(export_seeks(writer.sizes, 25.0, 2), export_meta(0, 25.0, 2), {"scope": "test"})
    return out.getvalue()


def bases() -> list[bytes]:
    made = [packed([bytes([n]) * (100 + 37 * n) + b"end" for n in range(count)]) for count in (1, 7, 30)]
    found = sorted(SHARED.glob("s0[1-578]*.h4mk")) if SHARED.is_dir() else []
    return made + [path.read_bytes() for path in found]


def flip(rng: random.Random, body: bytearray) -> None:
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, body: bytearray) -> None:
    at = rng.randrange(len(body))
    body[at : at + 4] = rng.choice(
        (b"\0\0\0\0", b"\xff\xff\xff\xff", b"CORE", b"SEEK", b"META", b"VERI", rng.randbytes(4))
    )


def cut(rng: random.Random, body: bytearray) -> None:
    del body[rng.randrange(len(body)) :]


def take_out(rng: random.Random, body: bytearray) -> None:
    at = rng.randrange(len(body))
    del body[at : at + rng.randrange(1, 40)]


def put_in(rng: random.Random, body: bytearray) -> None:
    at = rng.randrange(len(body))
    body[at:at] = rng.randbytes(rng.randrange(1, 40))


def double(rng: random.Random, body: bytearray) -> None:
    at, length = rng.randrange(len(body)), rng.randrange(1, 400)
    body[at:at] = body[at : at + length]


def lie(rng: random.Random, body: bytearray) -> None:
    """A chunk's size field says something else."""
    starts = [
        n for n in range(len(body) - 12) if bytes(body[n : n + 4]) in (b"CORE", b"SEEK", b"META", b"TSEK")
    ]
    if starts:
        size = rng.choice((0, 1, 2**31, 2**32 - 1, len(body), rng.randrange(4000)))
        struct.pack_into(rng.choice("<>") + "I", body, rng.choice(starts) + rng.choice((4, 8)), size)


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip, overwrite, cut, take_out, put_in, double, lie,
)  # fmt: skip


async def contents(body: bytes) -> tuple[set[bytes], int]:
    """All blocks that can be read, by content, and how many cannot; every document is made, too."""
    place = MemoryPlace(body, "games/x.h4mk")
    opened = await container.open_container(place, Options())
    count = len((await opened.walked()).cores)
    found, failed = set(), 0
    for index in range(count):
        try:
            found.add(await opened.decoded(index))
        except ReelfsError:
            failed += 1
    for make in (describe.manifest, describe.stats, describe.conformance, verify.verify):
        describe.as_json(await make(opened))
    for track in (await describe.tracks(opened)).values():
        describe.as_json(describe.track_manifest(track))
    seeks = await opened.seeks()
    if seeks is not None and seeks.entries:
        describe.seek_answer(seeks, 40_000)
    try:
        payload = await open_payload(opened)
        await payload.read(0, payload.size)
    except ReelfsError:
        failed += 1
    return found, failed


def check(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.choice(BASES)
    body = bytearray(base)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if len(body):
            rng.choice(MUTATIONS)(rng, body)
    began = time.process_time()
    try:
        found, _ = trio.run(contents, bytes(body))
    except ReelfsError:
        found = set()
    assert time.process_time() - began < SECONDS, f"seed {seed}"
    # Tags and sizes are under no CRC: "CORE" and eight zeros anywhere are a block of no bytes.
    assert found - {b""} <= GOOD[base], f"seed {seed}: a block that never was"


BASES = bases()
GOOD = {base: trio.run(contents, base)[0] for base in BASES}


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 400), pytest.param(1000, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_mutations(first: int, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, first + count):
        check(seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@given(st.lists(st.binary(max_size=400), max_size=20), st.integers(1, 60))
def test_what_was_packed_comes_back(blocks: list[bytes], gop: int) -> None:
    """Blocks, payload and verdict of a container of our writer, whatever is in it."""
    out = io.BytesIO()
    writer = Writer(out)
    for block in blocks:
        writer.block(block)
    writer.finish(export_seeks(writer.sizes, 30.0, gop), export_meta(0, 30.0, gop), {"ü": [1]})

    async def main() -> None:
        opened = await container.open_container(MemoryPlace(out.getvalue(), "x.h4mk"), Options())
        assert [await opened.decoded(n) for n in range(len(blocks))] == blocks
        payload = await open_payload(opened)
        assert await payload.read(0, payload.size) == b"".join(blocks)
        told = await verify.verify(opened)
        assert (told["valid"], told["problems"], told["undecodable_blocks"]) == (True, [], [])
        assert (await describe.conformance(opened))["conforms"]
        seeks = await opened.seeks()
        assert seeks is not None
        assert len(seeks.entries) == -(-len(blocks) // gop)

    trio.run(main)


def test_many_tiny_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is nothing but empty chunks: the walk stops at the limit and says so."""
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 1000)
    body = b"H4MK\0\1\0\0" + (b"CORE" + bytes(8)) * 5000

    async def main() -> None:
        opened = await container.open_container(MemoryPlace(body, "x.h4mk"), Options())
        chain = await opened.walked()
        assert len(chain.cores) == 1000
        assert "more than 1000 chunks" in chain.problems[0]
        assert await opened.decoded(999) == b""

    trio.run(main)


def test_steps_to_the_key_of_a_block_are_taken_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of block 100,000 is some seconds of work: nobody else waits for it."""
    threads: list[int] = []
    steps = Ratchet.message_key

    def noted(self: Ratchet, index: int) -> bytes:
        threads.append(threading.get_ident())
        return steps(self, index)

    out = io.BytesIO()
    writer = Writer(out)
    for _ in range(5):
        writer._chunk(chunks.CORE, CIPHER_MAGIC + bytes(200))
    writer.finish([], {"encrypted": True, "block_size": 5}, {})
    options = Options(keys=KeyFile({"*": Keys(shared_secret=b"obviously a fake")}))

    async def main() -> None:
        opened = await container.open_container(MemoryPlace(out.getvalue(), "games/x.h4mk"), options)
        monkeypatch.setattr(Ratchet, "message_key", noted)
        with pytest.raises(Damaged, match="does not decrypt"):
            await opened.decoded(4)
        assert (await opened.sizes()).tolist() == [5, 5, 5, 5, -1]

    trio.run(main)
    assert len(threads) >= 3
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    "row",
    [
        b'{"core_index": 1e400, "pts_us": 0, "track_id": "a"}',
        b'{"core_index": 0, "pts_us": -1e400, "track_id": "a"}',
        b'{"core_index": 0, "pts_us": NaN, "track_id": "a"}',
        b'{"core_index": 0, "pts_us": 0, "track_id": "\\ud800"}',
        b'{"core_index": 0, "pts_us": 0, "track_id": "\\udcff/\\u0000"}',
    ],
)
def test_rows_of_tracks_that_no_track_has(row: bytes) -> None:
    async def main() -> None:
        opened = await container.open_container(
            MemoryPlace(packed([b"small"] * 5), "games/x.h4mk"), Options()
        )
        told = base64.b64encode(b'{"trak": [' + row + b"]}").decode()
        opened.texts_known = container.Texts({"tracks": ["cam\ud800"], "trak_b64": told})
        tracks = await _Names(opened).node("tracks")
        assert isinstance(tracks, vfs.Directory)
        for name in await tracks.entries():
            name.encode()
            assert await tracks.lookup(name) is not None
        describe.as_json(await describe.manifest(opened))

    trio.run(main)
