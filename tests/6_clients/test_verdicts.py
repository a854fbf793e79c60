"""Clips in many players: each shows and seeks in ours as in FFmpeg's own cut of the same range, or better.

The table of docs/players.md is what they say; `--update-players` (with --slow: all of it) writes it anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from client_browser import Page, chromium, needs_browser, served
from client_mounts import ROOT, Mount, encode, mounted
from client_players import run, truth
from client_verdicts import PLAYERS, SIZE, File, Player, no_worse
from client_verdicts import chromium as in_chromium

pytestmark = [
    needs_browser,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed"),
]

DOC = ROOT / "docs" / "players.md"
#: Four seconds, a key frame each second.
SOURCES: dict[str, dict[str, Any]] = {
    "h264": {},
    "fragmented": {"fragmented": True},
    "hevc": {"codec": "libx265"},
    "vfr": {"vfr": True},
    "av1": {"codec": "libsvtav1"},
}
#: The name after the source's, from which second to which, what FFmpeg makes of that range.
CUT = ("-ss", "1.36", "-t", "1.3")
FRAGMENTS = ("-movflags", "frag_keyframe+empty_moov+default_base_moof")
FORMS: dict[str, tuple[str, float, float, tuple[str, ...]]] = {
    "range": ("@1.36s-2.66s.mp4", 1.36, 2.66, CUT),
    "key": ("@1.36s-2.66s.key.mp4", 1, 2.66, ("-ss", "1", "-t", "1.66")),
    "frag": ("@1.36s-2.66s.frag.mp4", 1.36, 2.66, (*CUT, *FRAGMENTS)),
    "instant": ("@1.36s.mp4", 1.36, 1.37, ("-ss", "1.36", "-t", "0.01", *FRAGMENTS)),
    "faststart": (".mp4@/faststart.mp4", 0, 4, ("-movflags", "faststart")),
    "fragmented": (".mp4@/fragmented.mp4", 0, 4, FRAGMENTS),
}
#: What runs without --slow.
DEFAULT = [("h264", "range"), ("h264", "key")]


@dataclass(frozen=True)
class Bench:
    """A mount of the sources with FFmpeg's cuts beside them, and the players that are there."""

    mount: Mount
    players: dict[str, Player]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    library = tmp_path_factory.mktemp("verdicts")
    for source, options in SOURCES.items():
        forms = [f for f in FORMS if request.config.getoption("--slow") or (source, f) in DEFAULT]
        if forms:
            path = encode(library / f"{source}.mp4", **{"frames": 120, "size": SIZE, **options})
        for form in forms:
            before, after = FORMS[form][3][:4], FORMS[form][3][4:]
            if before[0] == "-movflags":
                before, after = (), before
            cut = library / f"{source} {form}.mp4"
            run("ffmpeg", "-nostdin", "-v", "error", *before, "-i", path, "-c", "copy", *after, cut)
    with (
        mounted(tmp_path_factory.mktemp("mount"), library) as mount,
        served(mount.path) as site,
        chromium(tmp_path_factory.mktemp("profile")) as driver,
    ):
        players = [*PLAYERS, in_chromium(Page(driver, site))]
        yield Bench(mount, {player.name: player for player in players if player.version()})


#: What was found in this run: (ours, FFmpeg's own).
FOUND: dict[tuple[str, str, str], tuple[str, str]] = {}
NAMES = [player.name for player in PLAYERS] + ["Chromium"]


def cases() -> list[Any]:
    return [
        pytest.param(source, form, name, marks=() if (source, form) in DEFAULT else pytest.mark.slow)
        for source in SOURCES
        for form in FORMS
        for name in NAMES
        if (source, name) != ("hevc", "Chromium")  # Debian's has no decoder for it: see test_browser.py.
    ]


@pytest.mark.parametrize(("source", "form", "name"), cases())
def test_players_like_ours_as_ffmpegs_own(
    bench: Bench, tmp_path: Path, source: str, form: str, name: str
) -> None:
    if name not in bench.players:
        pytest.skip(f"{name} is not installed")
    known = truth(bench.mount.source / f"{source}.mp4")
    suffix, start, stop, _ = FORMS[form]
    times = [frame.time - known.zero for frame in known.frames]
    sought = Fraction(71, 100) if form != "instant" else Fraction(0)

    def judged(file: str, first: int, after: int, begin: Fraction) -> str:
        folder = tmp_path / file.replace("/", " ")
        folder.mkdir()
        path = bench.mount.source / f"{source}.mp4"
        verdict = bench.players[name].look(File(bench.mount.path / file, path, file), float(sought), folder)
        end = times[after] if after < len(times) else times[-1] + Fraction(1, 30)
        rank = min(known.at(begin + sought), after - 1)
        return verdict.against(range(first, after), rank, float(end - begin))

    first, after = known.between(Fraction(str(start)), Fraction(str(stop)))
    ours = judged(f"{source}{suffix}", first, after, times[first])
    # FFmpeg begins with the first picture at or after a time.
    first = next(i for i, time in enumerate(times) if time >= Fraction(str(start)))
    theirs = judged(f"{source} {form}.mp4", first, max(after, first + 1), Fraction(str(start)))
    FOUND[source, form, name] = ours, theirs
    print(f"VERDICT {source}|{form}|{name}|{ours}|{theirs}")
    assert no_worse(ours, theirs), f"ours: {ours}; FFmpeg's own: {theirs}"
