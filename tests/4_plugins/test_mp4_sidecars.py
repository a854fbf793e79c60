"""Sidecars that are made: in the schemas others read, the same every time, accepted and used by ourselves."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from vfs_mp4 import generate, rangedb, sidecar, source, timeline
from vfs_mp4.anchors import Anchors
from vfs_mp4.indexes import MADE, Indexes
from vfs_mp4.model import Movie

from vfs import Bytes, Settings, Spliced, Unsupported, open_runtime
from vfs.storage.memory import MemoryStore

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from mp4_places import MemoryPlace  # noqa: E402
from mp4_sparse import Sparse, init_of, sparse  # noqa: E402
from sample_media import encode, sidecars  # type: ignore[import-not-found]  # noqa: E402

CLIPS: dict[str, dict[str, object]] = {
    "even": {"gop": 20, "audio": True},
    "uneven": {"gop": 25, "audio": False, "vfr": True, "bframes": 3},
}


def agree(one: Anchors, other: Anchors) -> bool:
    """Whether two say the same about where the fragments lie and when they begin."""
    same = np.array_equal(one.offset, other.offset) and np.array_equal(one.time, other.time)
    return same and (one.timescale, one.end) == (other.timescale, other.end)


@pytest.fixture(scope="module", params=sorted(CLIPS))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / f"{request.param}.mp4"
    encode(path, fragmented=True, frames=120, size=(160, 90), **CLIPS[request.param])
    sidecars(path)
    return path


def opened(place: MemoryPlace) -> Movie:
    return trio.run(source.open_movie, place)


def made(place: MemoryPlace, name: str) -> bytes:
    async def go() -> bytes:
        node = await Indexes().resolve(place, name)
        assert isinstance(node, Bytes)
        return await node.produce()

    return trio.run(go)


def database(data: bytes, folder: Path) -> sqlite3.Connection:
    path = folder / "made.sqlite"
    path.write_bytes(data)
    return sqlite3.connect(path)


def test_the_database_is_in_the_known_schema(clip: Path, tmp_path: Path) -> None:
    """As Python's sqlite3 reads it; times, sizes and counts are those of the fragments."""
    movie = opened(MemoryPlace(clip.read_bytes()))
    video = movie.tracks[0]
    found = database(made(MemoryPlace(clip.read_bytes()), "index.sqlite"), tmp_path)
    assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert found.execute("PRAGMA page_size").fetchone() == (4096,)
    usual = Counter(video.samples.dur.tolist()).most_common(1)[0][0]
    assert found.execute("SELECT * FROM meta").fetchall() == [(video.timescale, video.track_id, usual)]
    rows = found.execute(
        "SELECT id, t, moof_offset, moof_size, mdat_offset, mdat_size, sample_count FROM fragments"
    ).fetchall()
    assert [row[0] for row in rows] == list(range(len(movie.fragments)))
    data = clip.read_bytes()
    for (_, t, moof, moof_size, mdat, mdat_size, _), fragment in zip(rows, movie.fragments, strict=True):
        assert (t, moof, moof_size) == (fragment.decode_time, fragment.offset, fragment.moof_size)
        assert (data[moof + 4 : moof + 8], data[mdat + 4 : mdat + 8]) == (b"moof", b"mdat")
        assert int.from_bytes(data[mdat : mdat + 4], "big") == mdat_size
    assert sum(row[6] for row in rows) == len(video.samples)
    plan = " ".join(
        str(row) for row in found.execute("EXPLAIN QUERY PLAN SELECT id FROM fragments WHERE t<1")
    )
    assert "idx_fragments_t" in plan
    found.close()


def test_durations_are_listed_where_they_differ(clip: Path, tmp_path: Path) -> None:
    """The default, and every sample of the fragments that have another."""
    movie = opened(MemoryPlace(clip.read_bytes()))
    found = database(made(MemoryPlace(clip.read_bytes()), "index.sqlite"), tmp_path)
    [(default,)] = found.execute("SELECT default_sample_duration FROM meta").fetchall()
    listed: dict[int, list[int]] = {}
    for number, index, length in found.execute("SELECT * FROM sample_durations ORDER BY fragment_id, idx"):
        assert index == len(listed.setdefault(number, []))
        listed[number].append(length)
    counts = [row[0] for row in found.execute("SELECT sample_count FROM fragments ORDER BY id")]
    told = [listed.get(number, [default] * count) for number, count in enumerate(counts)]
    assert [length for part in told for length in part] == movie.tracks[0].samples.dur.tolist()
    assert ("uneven" in clip.name) == (len(listed) > 1)
    found.close()


def test_both_forms_say_the_same_and_are_accepted(clip: Path) -> None:
    place = MemoryPlace(clip.read_bytes())
    one, other = (
        sidecar.parse(suffix, made(place, suffix[1:]), place.size)
        for suffix in (sidecar.SQLITE, sidecar.JSON)
    )
    assert agree(one, other)
    stored = sidecar.parse_json(Path(f"{clip}.index.json").read_bytes(), place.size)
    assert agree(one, stored)
    listed = json.loads(made(place, "index.json"))["fragments"]
    assert sum(row["duration"] for row in listed) == int(opened(place).tracks[0].samples.dur.sum())


@pytest.mark.parametrize("name", ["index.sqlite", "index.json"])
def test_what_is_made_is_used_when_it_is_stored(clip: Path, name: str) -> None:
    data = clip.read_bytes()
    place = MemoryPlace(data, beside={f".{name}": made(MemoryPlace(data), name)})
    movie = trio.run(source.movie_at, place, Fraction(1), Fraction(1))
    assert (movie.index_source, place.reports) == ("sidecar", [])


def test_an_index_of_another_size_is_refused(clip: Path) -> None:
    data = clip.read_bytes()
    other = MemoryPlace(
        data + b"\0\0\0\x08free", beside={".index.json": made(MemoryPlace(data), "index.json")}
    )
    assert trio.run(source.movie_at, other, Fraction(1), Fraction(1)).index_source != "sidecar"
    assert any(f"object of {len(data)} bytes" in line for line in other.reports)


def test_offsets_list_the_pictures_in_decode_order(clip: Path) -> None:
    place = MemoryPlace(clip.read_bytes())
    data = made(place, "offsets.json")
    own, keys = sidecar.parse_offsets(data)
    movie = opened(place)
    assert movie.video is not None
    assert own.tolist() == movie.video.samples.offset.tolist()
    assert [a == b for a, b in zip(own, keys, strict=True)] == movie.video.samples.sync.tolist()
    assert sidecar.disagreement((own, keys), movie) is None


def test_they_are_the_same_every_time(clip: Path) -> None:
    """Also from tables that came from elsewhere: the version of the node names all that they are made of."""
    for name in MADE:
        one = made(MemoryPlace(clip.read_bytes()), name)
        stored = {".index.json": Path(f"{clip}.index.json").read_bytes()}
        assert made(MemoryPlace(clip.read_bytes(), beside=stored), name) == one


def test_a_progressive_file_has_offsets_alone(tmp_path: Path) -> None:
    place = MemoryPlace(encode(tmp_path / "p.mp4", frames=30, size=(160, 90)).read_bytes())
    assert set(trio.run(Indexes().entries, place)) == {"offsets.json"}
    assert trio.run(Indexes().resolve, place, "index.sqlite") is None
    with pytest.raises(Unsupported, match="no fragments"):
        generate.index_sqlite(opened(place))


def test_what_one_mount_found_is_the_index_of_the_next(clip: Path) -> None:
    data = clip.read_bytes()
    data = data[: data.rindex(b"mfra") - 4]
    first = MemoryPlace(data)
    assert opened(first).index_source == "search"
    second = MemoryPlace(data, remembered=first.remembered)
    movie = trio.run(source.movie_at, second, Fraction(2), Fraction(2))
    assert (movie.index_source, second.reports) == ("sidecar", [])
    assert len(second.log) <= 2
    assert len(opened(second).fragments) == len(opened(first).fragments)


# ------------------------------------------------------------------ by range

COUNT = 6750


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Sparse:
    """90 minutes of 0.8 s fragments."""
    path = tmp_path_factory.mktemp("init") / "x.mp4"
    encode(path, frames=20, gop=20, bframes=0, fragmented=True, audio=False, size=(160, 90))
    init, ticks = init_of(path)
    picks = random.Random(1)
    sizes = [max(int(80_000 * picks.gauss(1, 0.4)), 9000) for _ in range(COUNT)]
    return sparse(init, COUNT, lambda number: sizes[number], ticks=ticks)


def stored_index(game: Sparse, path: Path, *, index: bool = True, columns: str = "") -> bytes:
    """A database with the durations of all samples, as its generator writes it: 4 MB."""
    found = sqlite3.connect(path)
    found.execute("PRAGMA page_size=4096")
    found.execute("CREATE TABLE meta(timescale INTEGER, track_id INTEGER, default_sample_duration INTEGER)")
    found.execute(
        "CREATE TABLE fragments(id INTEGER PRIMARY KEY, t INTEGER, moof_offset INTEGER, moof_size INTEGER,"
        " mdat_offset INTEGER, mdat_size INTEGER, sample_count INTEGER)"
    )
    found.execute(
        "CREATE TABLE sample_durations(fragment_id INTEGER, idx INTEGER, dur INTEGER,"
        " PRIMARY KEY(fragment_id, idx))"
    )
    if index:
        found.execute("CREATE INDEX idx_fragments_t ON fragments(t)")
    found.execute("INSERT INTO meta VALUES (?, 1, NULL)", (game.ticks,))
    length = game.each // 20
    for number, (begin, end, time) in enumerate(game.fragments):
        head = int.from_bytes(game.place.data[begin : begin + 4], "big")
        row = (number, time, begin, head, begin + head, end - begin - head, 20)
        found.execute("INSERT INTO fragments VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        each = [(number, index_, length) for index_ in range(20)]
        found.executemany("INSERT INTO sample_durations VALUES (?, ?, ?)", each)
    found.commit()
    found.execute("VACUUM")
    found.close()
    return path.read_bytes()


@pytest.fixture(scope="module", params=[True, False], ids=["by index", "by number"])
def indexed(request: pytest.FixtureRequest, game: Sparse, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stored_index(game, tmp_path_factory.mktemp("db") / "x.sqlite", index=request.param)


def fresh(game: Sparse, database: bytes) -> MemoryPlace:
    place = game.place
    for kept in (place.log, place.ranges.held, place.memo, place.locks, place.reports):
        kept.clear()
    place.beside = {".index.sqlite": database}
    return place


def asked(place: MemoryPlace) -> list[int]:
    """Lengths of the requests for the sidecar."""
    return [length for path, _, length in place.log if path.endswith(".sqlite")]


def fragment_at(game: Sparse, place: MemoryPlace, when: Fraction) -> None:
    movie = trio.run(source.movie_at, place, when, when)
    track = movie.video
    assert track is not None
    shown = timeline.shown(movie, track)
    row = int(shown.order[timeline.row_at(shown, timeline.ticks(when, track, movie))])
    begin, end, _ = game.fragments[int(when * game.ticks) // game.each]
    assert begin <= int(track.samples.offset[row]) < end
    assert movie.index_source == "sidecar"


def test_a_large_sidecar_costs_six_requests_for_an_instant(game: Sparse, indexed: bytes) -> None:
    """4 MB beside the video; what is read of it is 64 KiB at most, and the video costs two requests."""
    assert len(indexed) > 3.5e6
    picks, costs = random.Random(3), []
    for _ in range(25):
        place = fresh(game, indexed)
        fragment_at(game, place, Fraction(picks.randrange(COUNT * game.each), game.ticks))
        costs.append((len(asked(place)), sum(asked(place))))
        assert len(place.log) - len(asked(place)) <= 2
        assert place.reports == []
    print(
        f"\nrequests {sorted(Counter(c[0] for c in costs).items())}, at most {max(c[1] for c in costs)} bytes"
    )
    assert max(count for count, _ in costs) <= 6
    assert max(size for _, size in costs) <= 64 << 10


def test_a_large_sidecar_costs_a_store_no_more(game: Sparse, indexed: bytes) -> None:
    """By the paths of a mount, through its caches: at most six GETs and 64 KiB, and three for the video."""
    objects = {"games/x.mp4": game.place.data, "games/x.mp4.index.sqlite": indexed}
    settings = Settings.from_dict({"source": "memory://", "cache_size": 0})

    async def cost(when: str) -> tuple[int, int, int]:
        store = MemoryStore(objects)
        async with open_runtime(settings, store=store) as runtime:
            found = await runtime.tree.resolve(f"games/x@{when}.mp4")
            assert isinstance(found.node, Spliced)
            await runtime.reader.fetch(found.node.layout)
        lengths = [request.length for request in store.reads() if request.key.endswith(".sqlite")]
        return len(lengths), sum(lengths), len(store.reads()) - len(lengths)

    costs = [trio.run(cost, when) for when in ("0s", "123.4s", "2700s", "4000.2s")]
    assert max(costs)[0] <= 6
    assert max(spent for _, spent, _ in costs) <= 64 << 10
    assert max(video for _, _, video in costs) <= 3


def test_a_large_sidecar_is_asked_less_the_second_time(game: Sparse, indexed: bytes) -> None:
    place = fresh(game, indexed)
    fragment_at(game, place, Fraction(2000))
    before = len(asked(place))
    fragment_at(game, place, Fraction(20008, 10))
    assert len(asked(place)) == before
    fragment_at(game, place, Fraction(4000))
    assert len(asked(place)) <= before + 3


def test_a_range_and_the_ends_by_a_large_sidecar(game: Sparse, indexed: bytes) -> None:
    place = fresh(game, indexed)
    movie = trio.run(source.movie_at, place, Fraction(1000), Fraction(1040))
    assert len(movie.fragments) >= 50
    assert movie.duration == Fraction(COUNT * game.each, game.ticks)
    for when in (Fraction(0), movie.duration - Fraction(1, game.ticks)):
        fragment_at(game, place, when)
    assert place.reports == []


def test_many_at_once_by_a_large_sidecar(game: Sparse, indexed: bytes) -> None:
    place = fresh(game, indexed)
    picks = random.Random(8)
    times = [Fraction(picks.randrange(COUNT * game.each), game.ticks) for _ in range(20)]

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            for when in times:
                nursery.start_soon(source.movie_at, place, when, when)

    trio.run(go)
    assert place.reports == []


def test_hostile_large_sidecars_never_give_a_wrong_frame(game: Sparse, indexed: bytes) -> None:
    """Bytes changed at random, most of them where they are read: ignored with a reason, or right."""
    picks = random.Random(4)
    for _ in range(40):
        data = bytearray(indexed)
        for _ in range(picks.randrange(1, 40)):
            where = picks.randrange(64 << 10) if picks.random() < 0.7 else picks.randrange(len(data))
            data[where] = picks.choice((0, 1, 0x7F, 0x80, 0xFF, picks.randrange(256)))
        place = fresh(game, bytes(data))
        when = Fraction(picks.randrange(COUNT * game.each), game.ticks)
        movie = trio.run(source.movie_at, place, when, when)
        begin, end, _ = game.fragments[int(when * game.ticks) // game.each]
        track = movie.video
        assert track is not None
        shown = timeline.shown(movie, track)
        row = int(shown.order[timeline.row_at(shown, timeline.ticks(when, track, movie))])
        assert begin <= int(track.samples.offset[row]) < end
        assert movie.index_source == "sidecar" or place.reports


def test_a_view_that_computes_for_ever_is_refused_by_range(game: Sparse, tmp_path: Path) -> None:
    path = tmp_path / "evil.sqlite"
    found = sqlite3.connect(path)
    found.executescript(
        "CREATE TABLE meta(timescale, track_id, default_sample_duration);"
        f"INSERT INTO meta VALUES ({game.ticks}, 1, NULL);"
        "CREATE VIEW fragments AS WITH RECURSIVE n(t) AS (SELECT 1 UNION ALL SELECT t + 1 FROM n)"
        " SELECT t AS rowid, t, t AS moof_offset, t AS moof_size, t AS mdat_offset, t AS mdat_size,"
        " t AS sample_count FROM n;"
        "CREATE TABLE padding(x); INSERT INTO padding VALUES (zeroblob(700000));"
    )
    found.close()
    data = path.read_bytes()
    assert len(data) > rangedb.WHOLE
    place = fresh(game, data)
    assert trio.run(source.movie_at, place, Fraction(9), Fraction(9)).index_source == "search"
    assert any(".index.sqlite ignored" in line for line in place.reports)


def test_a_store_that_fails_is_no_bad_sidecar(game: Sparse, indexed: bytes) -> None:
    """What the store raised comes out of the thread as it was, and nothing is left open."""
    from vfs import Unavailable

    place = fresh(game, indexed)

    class Failing(MemoryPlace):
        async def read(self, offset: int, length: int) -> bytes:
            if offset:
                raise Unavailable("gone")
            return await super().read(offset, length)

    side = Failing(indexed, place.path + ".index.sqlite")
    with pytest.raises(Unavailable, match="gone"):
        trio.run(rangedb.RangedIndex.opened, side, place.size)
    assert rangedb._open == {}


def test_a_question_can_be_given_up(game: Sparse, indexed: bytes) -> None:
    """A reader that is cancelled while a page is on its way leaves nothing behind."""
    place = fresh(game, indexed)
    asking: list[Any] = []

    class Stuck(MemoryPlace):
        async def read(self, offset: int, length: int) -> bytes:
            asking.append(offset)
            await trio.sleep_forever()
            raise AssertionError

    async def go() -> None:
        with trio.move_on_after(0.05) as scope:
            await rangedb.RangedIndex.opened(Stuck(indexed, "x.index.sqlite"), place.size)
        assert scope.cancelled_caught

    trio.run(go)
    assert asking == [0]
    assert rangedb._open == {}
