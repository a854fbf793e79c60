"""Clips and whole files in another form: what reading them asks of the store."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import av

from tests.bench import mounted
from tests.bench.game import BIG, SMALL, folder, fragmented, kept, need, progressive
from tests.bench.result import Row, at_most, figure
from tests.bench.stage import BUCKET, Stage, stage

#: From inside of a group of pictures, from a key frame on, and across the whole length of a few groups.
RANGES = ((61.9, 64.3), (84.0, 94.0), (30.7, 33.0), (121.3, 151.3))
SOURCE = f"s3://{BUCKET}/games"
#: How much a file is padded to be one of 3 GB.
PADDING = 3_000_000_000
KIB = 1024


def clips() -> list[Row]:
    """Exact clips of the big game beside the samples from their key frame to their last, and the start of
    `faststart.mp4` of a file of 3 GB with its moov at the end: what a player reads before it plays.
    """
    rows = []
    for form, path in (("progressive", progressive(BIG)), ("fragmented", fragmented(BIG))):
        files = {"games/game.mp4": path}
        if form == "fragmented":
            files["games/game.mp4.index.sqlite"] = Path(f"{path}.index.sqlite")
        head = need(path, 0.0).head
        ratios, counts = [], []
        with stage(files) as place:
            for start, stop in RANGES:
                with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                    count, size = _reading(place, (mount / f"game@{start}s-{stop}s.mp4").read_bytes)
                counts.append(count)
                ratios.append(size / (head + window(path, start, stop)))
        limit = "bytes of a clip / (index + key frame..last frame), worst"
        rows.append(at_most(f"{form}: {limit}", max(ratios), 1.1, "x", exact=True))
        rows.append(figure(f"{form}: GETs of {len(RANGES)} clips of 2 to 30 s, each cold", sum(counts)))
    return [*rows, *_faststart()]


def window(path: Path, start: float, stop: float) -> int:
    """Bytes of the samples from the key frame that `start` is decoded from to the last before `stop`."""
    total = 0
    with av.open(str(path), "r") as container:
        for packet in container.demux(video=0):
            if not packet.size or packet.pts is None:
                continue
            time = float(packet.pts * packet.time_base)
            if time > stop - 1e-6:
                break
            if time <= start + 1e-6 and packet.is_keyframe:
                total = 0
            total += packet.size
    return total


def _faststart() -> list[Row]:
    path = padded()
    moov = need(path, 0.0).head
    with (
        stage({"games/game.mp4": path}) as place,
        mounted.reelfs(SOURCE, place.root, place.environ) as mount,
    ):
        view = mount / "game.mp4@" / "faststart.mp4"

        def begin() -> None:
            """What a player does before it plays: find the size, read up to the media."""
            assert view.stat().st_size > PADDING
            with view.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), moov, 0)
            assert b"moov" in data[:4096]

        count, size = _reading(place, begin)
    return [
        at_most("faststart of 3 GB: GETs before it plays", count, 3, exact=True),
        at_most(
            "faststart of 3 GB: bytes beyond its tables", max(size - moov, 0) / KIB, 64, "KiB", exact=True
        ),
    ]


def padded() -> Path:
    """A progressive file, 3 GB of nothing before its samples, its moov at the end; it takes no room."""
    source = progressive(SMALL)

    def make(target: Path) -> None:
        data = source.read_bytes()
        ftyp = struct.unpack_from(">I", data)[0]
        mdat, moov = data.index(b"mdat") - 4, data.rindex(b"moov") - 4
        samples, tables = data[mdat + 8 : moov], bytearray(data[moov:])
        at = tables.index(b"stco")
        (count,) = struct.unpack_from(">I", tables, at + 8)
        offsets = struct.unpack_from(f">{count}I", tables, at + 12)
        more = ftyp + 16 + PADDING - (mdat + 8)
        struct.pack_into(f">{count}I", tables, at + 12, *(offset + more for offset in offsets))
        with target.open("wb") as out:
            out.write(data[:ftyp] + struct.pack(">I4sQ", 1, b"mdat", 16 + PADDING + len(samples)))
            out.seek(PADDING, os.SEEK_CUR)
            out.write(samples + tables)

    return kept(folder(), "padded-3gb-v2", make)


def _reading(place: Stage, read: Callable[[], object]) -> tuple[int, int]:
    place.proxy.reset()
    read()
    return place.gets()
