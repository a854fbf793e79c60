"""Frames of fragmented files that nothing lists: few requests, few bytes, and never a wrong fragment."""

from __future__ import annotations

import contextlib
import math
import random
import struct
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
import trio
from vfs_mp4 import source, timeline, walk
from vfs_mp4.model import Movie
from vfs_mp4.probe import Reader, open_moov

from vfs import MediaError, OutOfRange

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from mp4_places import MemoryPlace  # noqa: E402
from mp4_sparse import Sparse, boxed, init_of, moof, sparse  # noqa: E402
from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
GAME = 540 * 1000 * 1000


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A real init section, and the ticks a second of its track."""
    path = tmp_path_factory.mktemp("init") / "x.mp4"
    encode(path, frames=20, gop=20, bframes=0, fragmented=True, audio=False, size=(160, 90))
    return init_of(path)


def uneven(mean: int, spread: float, seed: int = 1) -> Callable[[int], int]:
    """Sizes that vary by `spread` (standard deviation, as a part of the mean)."""
    picks = random.Random(seed)
    sizes = [max(int(mean * picks.gauss(1, spread)), mean // 8) for _ in range(GAME // mean)]
    return lambda number: sizes[number % len(sizes)]


def shown_at(movie: Movie, when: Fraction) -> int:
    """Offset of the picture shown at a time."""
    track = movie.video
    assert track is not None
    shown = timeline.shown(movie, track)
    row = int(shown.order[timeline.row_at(shown, timeline.ticks(when, track, movie))])
    return int(track.samples.offset[row])


def fresh(place: MemoryPlace) -> None:
    """As if never read."""
    for kept in (place.log, place.ranges.held, place.memo, place.locks, place.reports):
        kept.clear()


def reading(made: Sparse, when: Fraction) -> tuple[int, int]:
    """Requests for the frame at a time with all of its fragment, and the bytes beyond that fragment."""
    place, before = made.place, len(made.place.log)
    movie = trio.run(source.movie_at, place, when, when)
    begin, end, _ = made.at(when)
    assert begin <= shown_at(movie, when) < end
    assert movie.index_source == "search"
    trio.run(place.read, begin, end - begin)
    return len(place.log) - before, sum(length for _, _, length in place.log[before:]) - (end - begin)


GAMES: dict[str, tuple[int, Callable[[int], int]]] = {
    "even": (80_000, lambda number: 80_000),
    "uneven": (80_000, uneven(80_000, 0.4)),
    "waves": (80_000, lambda number: int(80_000 * (1 + 0.6 * math.sin(number / 500)))),
    "more and more": (80_000, lambda number: int(20_000 * (1 + 6 * number * 80_000 / GAME))),
    "large fragments": (4_400_000, lambda number: 4_400_000),
}


@pytest.mark.parametrize("name", GAMES)
def test_an_instant_of_an_unindexed_game_costs_ten_requests(name: str, init: tuple[bytes, int]) -> None:
    """540 MB, 90 minutes of 0.8 s fragments (players step through 123 of the large ones)."""
    mean, size_of = GAMES[name]
    count = GAME // mean
    made = sparse(init[0], count, size_of, ticks=init[1])
    assert made.place.size > 0.95 * GAME
    picks, costs = random.Random(5), []
    for _ in range(8):
        fresh(made.place)
        costs.append(reading(made, Fraction(picks.randrange(count * made.each), made.ticks)))
    print(f"\n{name}: requests {sorted(c[0] for c in costs)} KiB beyond {sorted(c[1] >> 10 for c in costs)}")
    assert max(gets for gets, _ in costs) <= 10
    assert max(beyond for _, beyond in costs) <= 4 * MIB


def layout(course: str, mean: int) -> tuple[list[int], list[int]]:
    """(sizes, numbers of samples) of the fragments of 540 MB, of `mean` bytes."""
    picks, count = random.Random(1), GAME // mean
    lengths = [picks.randrange(6, 35) if course == "uneven" else 20 for _ in range(count)]

    def rate(part: float) -> float:
        if course == "waves":
            return 1 + 0.6 * math.sin(12 * part)
        if course == "more":
            return 0.25 + 1.5 * part
        if course == "jump":
            return 0.2 if part < 0.6 else 2.2
        return max(picks.gauss(1, 0.4), 0.125)

    return [int(mean * n / 20 * rate(at / count)) for at, n in enumerate(lengths)], lengths


#: Of each course and size of fragments: requests (nine of ten times, at worst), MiB beyond (likewise).
COSTS = {
    ("uneven", 80_000): (7, 8, 2.5, 3),
    ("uneven", 400_000): (10, 11, 2.5, 3),
    ("uneven", 1_000_000): (11, 13, 3, 6),
    ("uneven", 4_400_000): (12, 13, 16, 17),
    ("sizes", 400_000): (9, 11, 2, 3),
    ("sizes", 4_400_000): (10, 11, 9, 11),
    ("waves", 80_000): (9, 9, 3, 4),
    ("waves", 1_000_000): (9, 10, 2.5, 3),
    ("waves", 4_400_000): (10, 10, 9, 9.5),
    ("more", 1_000_000): (10, 11, 3, 4),
    ("jump", 80_000): (6, 7, 1.5, 2),
    ("jump", 1_000_000): (11, 17, 6.5, 7),
}


@pytest.mark.parametrize(("course", "mean"), COSTS, ids=str)
def test_uneven_fragments_cost_hardly_more(course: str, mean: int, init: tuple[bytes, int]) -> None:
    """540 MB whose bit rate, and fragments' lengths, vary: by chance, in waves, steadily, or with one jump.

    Ten requests nine times in ten, or near it (eleven or twelve where lengths vary, too, and behind a jump).
    4 MiB beyond what is wanted are kept, nearly always, where fragments have up to a megabyte; behind a jump
    6.5 are not passed. Not where they have more: a look at a place in the media of another one costs what is
    left of it, half a fragment, and nothing but looks tells where one begins.
    """
    sizes, lengths = layout(course, mean)
    made = sparse(init[0], len(sizes), sizes.__getitem__, ticks=init[1], samples=lengths.__getitem__)
    picks, costs = random.Random(11), []
    for _ in range(20):
        fresh(made.place)
        costs.append(reading(made, Fraction(picks.randrange(len(sizes) * made.each), made.ticks)))
    gets, beyond = sorted(c[0] for c in costs), sorted(c[1] / MIB for c in costs)
    print(f"\n{course} {mean}: requests {gets} MiB beyond {[round(b, 1) for b in beyond]}")
    told = (gets[17], gets[-1], beyond[17], beyond[-1])
    assert all(cost <= most for cost, most in zip(told, COSTS[course, mean], strict=True)), told


def test_what_was_learnt_makes_the_next_time_cheaper(init: tuple[bytes, int]) -> None:
    """A neighbour costs what an indexed one does; every further one is found from nearer by."""
    made = sparse(init[0], GAME // 80_000, uneven(80_000, 0.4), ticks=init[1])
    first, _ = reading(made, Fraction(3000))
    near, _ = reading(made, Fraction(30008, 10))
    assert near < first
    assert near <= 2
    assert reading(made, Fraction(30008, 10))[0] == 0
    far = [reading(made, Fraction(3000 + 37 * step, 1))[0] for step in range(1, 12)]
    assert max(far) <= 6


def test_the_ends_of_the_line(init: tuple[bytes, int]) -> None:
    made = sparse(init[0], 500, uneven(80_000, 0.4), ticks=init[1], tail=boxed(b"free", bytes(64)))
    end = Fraction(500 * made.each, made.ticks)
    assert reading(made, Fraction(0))[0] <= 4
    fresh(made.place)
    assert reading(made, end - Fraction(1, made.ticks))[0] <= 5
    fresh(made.place)
    movie = trio.run(source.movie_at, made.place, end, end)
    assert (movie.duration, movie.exact_duration) == (end, True)
    with pytest.raises(OutOfRange):
        trio.run(source.movie_at, made.place, end + 1, end + 1)
    with pytest.raises(OutOfRange):
        trio.run(source.movie_at, made.place, end, end + 1)


def test_a_range_is_whole(init: tuple[bytes, int]) -> None:
    """All fragments of the range, with boxes between them, and none twice."""
    between = boxed(b"styp", b"msdh" + bytes(4)) + boxed(b"free", b"moof" * 8)
    made = sparse(init[0], 400, uneven(60_000, 0.4), ticks=init[1], between=between)
    movie = trio.run(source.movie_at, made.place, Fraction(100), Fraction(108))
    begin, last = 100 * made.ticks // made.each, -(-108 * made.ticks // made.each) - 1
    assert {f[0] for f in made.fragments[begin : last + 1]} <= {f.offset for f in movie.fragments}
    assert not movie.complete
    assert len(made.place.log) <= 20


def fakes(init: tuple[bytes, int], made: Sparse, number: int, times: list[int]) -> bytes:
    """Whole fragments, one behind the other, as they could lie in the media of fragment `number`."""
    found = b""
    for step, when in enumerate(times):
        head = moof(number + 1 + step, when * made.each, [100] * 20, made.each // 20)
        found += head + struct.pack(">I4s", 8 + 2000, b"mdat") + bytes(2000)
    return found


@pytest.mark.parametrize("size", [50_000, 600_000])
@pytest.mark.parametrize("count", [1, 3])
def test_fragments_inside_the_media_are_no_fragments(init: tuple[bytes, int], count: int, size: int) -> None:
    """Letters, broken boxes, and whole fragments with fitting times, all over the media."""
    plain = sparse(init[0], 300, lambda number: size, ticks=init[1])
    picks = random.Random(9)
    inside = {}
    for number in range(1, 300):
        real = moof(number, number * plain.each, [100] * 20, plain.each // 20)
        inside[number] = picks.choice(
            [
                b"moof" * 40,
                struct.pack(">I4sI4sII", 120, b"moof", 16, b"mfhd", 0, number) + bytes(100),
                real,
                fakes(init, plain, number, [number + 1 + step for step in range(count)]),
            ]
        )
    made = sparse(init[0], 300, lambda number: size, ticks=init[1], inside=inside)
    for _ in range(40):
        fresh(made.place)
        when = Fraction(picks.randrange(300 * made.each), made.ticks)
        movie = trio.run(source.movie_at, made.place, when, when)
        begin, end, _ = made.fragments[int(when * made.ticks) // made.each]
        assert begin <= shown_at(movie, when) < end
        track = movie.video
        assert track is not None
        assert int(track.samples.size[0]) == size // 20


@pytest.mark.parametrize("size", [60_000, 700_000])
def test_what_needs_everything_looks_at_each_fragment_once(init: tuple[bytes, int], size: int) -> None:
    """In eight parts at once; the same tables as from box to box, and what is found is kept."""
    made = sparse(init[0], 120, uneven(size, 0.4), ticks=init[1])
    reading(made, Fraction(40))
    before = len(made.place.log)
    found = trio.run(source.open_movie, made.place)
    assert (found.complete, found.index_source, len(found.fragments)) == (True, "search", 120)
    assert [f.offset for f in found.fragments] == [begin for begin, _, _ in made.fragments]
    assert len(made.place.log) - before <= 120 + 40
    for when in (Fraction(0), Fraction(41), Fraction(959, 10)):
        assert shown_at(trio.run(source.movie_at, made.place, when, when), when) == shown_at(found, when)
    fresh(made.place)
    movie = trio.run(source.movie_at, made.place, Fraction(60), Fraction(60))
    assert (movie.index_source, len(made.place.log)) == ("sidecar", 2)


def test_a_broken_fragment_costs_itself_alone(init: tuple[bytes, int]) -> None:
    """Garbage instead of a moof: what is around is found; what a walk cannot reach either is not there."""
    made = sparse(init[0], 60, lambda number: 40_000, ticks=init[1])
    heads = made.place.data.pieces  # type: ignore[attr-defined]
    broken = made.fragments[15][0]
    heads[:] = [(at, b"\0\0\0\3junk" + piece[8:] if at == broken and piece else piece) for at, piece in heads]
    for when, number in ((Fraction(8), 10), (Fraction(47), 58), (Fraction(119, 10), 14)):
        fresh(made.place)
        begin, end, _ = made.fragments[number]
        movie = trio.run(source.movie_at, made.place, when, when)
        assert begin <= shown_at(movie, when) < end
    fresh(made.place)
    with pytest.raises(OutOfRange):
        trio.run(source.movie_at, made.place, Fraction(124, 10), Fraction(124, 10))


def remuxed(path: Path, flags: str) -> bytes:
    """The packets of a file in other fragments, without the mfra at the end."""
    made = path.with_suffix(f".{len(flags)}.mp4")
    with av.open(str(path)) as source_, av.open(str(made), "w", options={"movflags": flags}) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source_.streams}
        for packet in source_.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    data = made.read_bytes()
    return data[: data.rindex(b"mfra") - 4] if b"mfra" in data else data


def walked(place: MemoryPlace) -> Movie:
    """The tables from box to box."""

    async def go() -> Movie:
        return await walk.whole(place, await open_moov(Reader(place)))

    return trio.run(go)


def offsets(movie: Movie, handler: str, start: Fraction, stop: Fraction) -> list[int]:
    """Where the samples of a track that are shown in a range lie."""
    track = next(track for track in movie.tracks if track.handler == handler)
    shown = timeline.shown(movie, track)
    begin, end = (timeline.ticks(when, track, movie) for when in (start, stop))
    return [int(o) for o in track.samples.offset[shown.order[timeline.rows_between(shown, begin, end)]]]


@pytest.mark.parametrize("extra", ["+separate_moof", "+dash", "+frag_every_frame"])
def test_fragments_of_all_kinds(tmp_path: Path, extra: str) -> None:
    """Sound in fragments of its own, boxes between fragments, a fragment for each sample."""
    path = encode(tmp_path / "a.mp4", frames=150, gop=15, size=(160, 90))
    data = remuxed(path, "frag_keyframe+empty_moov+default_base_moof" + extra)
    whole = walked(MemoryPlace(data))
    picks, place = random.Random(3), MemoryPlace(data)
    for _ in range(25):
        start = Fraction(picks.randrange(int(whole.duration * 1000) - 1), 1000)
        stop = min(start + Fraction(picks.choice((1, 500, 2000)), 1000), whole.duration)
        window = trio.run(source.movie_at, place, start, stop)
        assert (window.index_source, window.zero) == ("search", whole.zero)
        for handler in ("vide", "soun"):
            assert offsets(window, handler, start, stop) == offsets(whole, handler, start, stop)
    found = trio.run(source.open_movie, MemoryPlace(data))
    assert found.index_source == "search"
    assert found.fragments == whole.fragments
    assert place.reports == []


def test_mutated_files_raise_only_media_errors(init: tuple[bytes, int]) -> None:
    """Bytes of moofs and of what lies between them changed at random: an error, or an answer, soon."""
    picks = random.Random(12)
    for turn in range(16):
        sizes = uneven((50_000, 500_000)[turn % 2], 0.4)
        made = sparse(init[0], 150, sizes, ticks=init[1], between=boxed(b"styp", bytes(8)))
        pieces = made.place.data.pieces  # type: ignore[attr-defined]
        for _ in range(picks.randrange(1, 30)):
            number = picks.randrange(1, len(pieces) - 1)
            at, piece = pieces[number]
            changed = bytearray(piece)
            changed[picks.randrange(len(changed))] = picks.choice((0, 1, 0x7F, 0x80, 0xFF))
            pieces[number] = (at, bytes(changed))
        when = Fraction(picks.randrange(150 * made.each), made.ticks)
        begun = time.perf_counter()
        with contextlib.suppress(MediaError, OutOfRange):
            trio.run(source.movie_at, made.place, when, when)
        with contextlib.suppress(MediaError):
            trio.run(source.open_movie, made.place)
        assert time.perf_counter() - begun < 5


def test_many_at_once_find_the_same(init: tuple[bytes, int]) -> None:
    made = sparse(init[0], 2000, uneven(60_000, 0.4), ticks=init[1])
    picks = random.Random(2)
    times = [Fraction(picks.randrange(2000 * made.each), made.ticks) for _ in range(30)]

    async def one(when: Fraction) -> None:
        begin, end, _ = made.fragments[int(when * made.ticks) // made.each]
        assert begin <= shown_at(await source.movie_at(made.place, when, when), when) < end

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            for when in times:
                nursery.start_soon(one, when)

    trio.run(go)
    assert made.place.reports == []
