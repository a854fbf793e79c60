"""Clips in many players: each shows and seeks in ours as in FFmpeg's own cut of the same range, or better.

The tables of docs/players.md are what they say; `--update-docs` (with --slow: all of them) writes them anew.
"""

from __future__ import annotations

import math
import re
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
from client_verdicts import JUST, PLAYERS, SIZE, UNSTEADY, File, Player, no_worse
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
FRAGMENTS = ("-movflags", "frag_keyframe+empty_moov+default_base_moof")
#: The name after the source's, from when to when (seconds), what FFmpeg is told beside the range.
FORMS: dict[str, tuple[str, Fraction, Fraction, tuple[str, ...]]] = {
    "range": ("@1.36s-2.66s.mp4", Fraction("1.36"), Fraction("2.66"), ()),
    "key": ("@1.36s-2.66s.key.mp4", Fraction("1.36"), Fraction("2.66"), ()),
    "frag": ("@1.36s-2.66s.frag.mp4", Fraction("1.36"), Fraction("2.66"), FRAGMENTS),
    "instant": ("@1.36s.mp4", Fraction("1.36"), Fraction("1.361"), FRAGMENTS),
    "faststart": (".mp4@/faststart.mp4", Fraction(0), Fraction(99), ("-movflags", "faststart")),
    "fragmented": (".mp4@/fragmented.mp4", Fraction(0), Fraction(99), FRAGMENTS),
}
#: What runs without --slow.
DEFAULT = [("h264", "range")]


@dataclass(frozen=True)
class Bench:
    """A mount of the sources with FFmpeg's cuts beside them, and the players that are there."""

    mount: Mount
    players: dict[str, Player]

    def source(self, name: str) -> Path:
        return self.mount.source / f"{name}.mp4"


def range_of(path: Path, form: str) -> tuple[int, Fraction, Fraction]:
    """Which picture of a source a form begins with, when that is (seconds of its line), and when it ends."""
    known, (_, start, stop, _) = truth(path), FORMS[form]
    first = known.at(start)
    first -= first % 30 if form == "key" else 0
    return first, known.frames[first].time - known.zero, stop


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    library = tmp_path_factory.mktemp("verdicts")
    for source, options in SOURCES.items():
        forms = [f for f in FORMS if request.config.getoption("--slow") or (source, f) in DEFAULT]
        if forms:
            path = encode(library / f"{source}.mp4", **{"frames": 120, "size": SIZE, **options})
        for form in forms:
            _, start, stop = range_of(path, form)
            start = FORMS[form][1] if form != "key" else start
            begin = math.ceil(start * 10**6) / 10**6
            cut = ("-ss", f"{begin:.6f}", "-t", f"{float(stop) - begin:.6f}") if start else ()
            target = library / f"{source}-{form}.mp4"
            run("ffmpeg", "-nostdin", "-v", "error", *cut, "-i", path, "-c", "copy", *FORMS[form][3], target)
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


#: What is given as it is stored: there is no cut to compare.
STORED = [("fragmented", form) for form in ("frag", "instant", "faststart", "fragmented")]


def cases() -> list[Any]:
    return [
        pytest.param(source, form, name, marks=() if (source, form) in DEFAULT else pytest.mark.slow)
        for source in SOURCES
        for form in FORMS
        for name in NAMES
        # Debian's Chromium has no decoder for HEVC.
        if (source, form) not in STORED and (source, name) != ("hevc", "Chromium")
    ]


@pytest.mark.parametrize(("source", "form", "name"), cases())
def test_players_like_ours_as_ffmpegs_own(
    bench: Bench, tmp_path: Path, source: str, form: str, name: str
) -> None:
    if name not in bench.players:
        pytest.skip(f"{name} is not installed")
    path = bench.source(source)
    known = truth(path)
    times = [frame.time - known.zero for frame in known.frames]
    first, begin, stop = range_of(path, form)
    after = sum(time < stop for time in times)
    end = times[after] if after < len(times) else times[-1] + Fraction(1, 30)

    def judged(file: str, first: int, begin: Fraction) -> str:
        folder = tmp_path / str(first) / file.replace("/", "-")
        folder.mkdir(parents=True)
        sought = None if form == "instant" else first + 20
        at = float(times[sought] - begin) + JUST / 2 if sought else 0.0
        verdict = bench.players[name].look(File(bench.mount.path / file, path, file), at, folder)
        return verdict.against(range(first, after), sought, float(end - begin) if sought else None)

    ours = judged(f"{source}{FORMS[form][0]}", first, begin)
    # FFmpeg's begins with the first picture at or after a time.
    late = begin if form == "key" else FORMS[form][1]
    theirs = judged(f"{source}-{form}.mp4", next(i for i, t in enumerate(times) if t >= late), late)
    FOUND[source, form, name] = ours, theirs
    assert no_worse(name, ours, theirs), f"ours: {ours}; FFmpeg's own: {theirs}"


# ---------------------------------------------------------------- the page


def tables(versions: dict[str, str]) -> str:
    """The two tables of the page, of what was found."""
    head = " | ".join(f"{name} {versions[name]}" for name in NAMES)
    lines = []
    for title, number in (("reelfs", 0), ("ffmpeg -c copy", 1)):
        lines += [f"| {title} | {head} |", "|---" * (len(NAMES) + 1) + "|"]
        for source in SOURCES:
            for form in FORMS:
                cells = [FOUND.get((source, form, name), ("-", "-"))[number] for name in NAMES]
                if set(cells) != {"-"}:
                    lines.append(f"| {source}, {form} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def told() -> Iterator[tuple[int, str, str, str, str]]:
    """The cells of the page: which table, source, form, player with its version, verdict."""
    number, names = -1, [""]
    for line in DOC.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("reelfs", "ffmpeg -c copy"):
            number, names = number + 1, cells[1:]
        elif number >= 0 and ", " in cells[0] and len(cells) == len(names) + 1:
            for name, verdict in zip(names, cells[1:], strict=True):
                source, _, form = cells[0].partition(", ")
                yield number, source, form, name, verdict


def test_the_page_says_what_was_found(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Of players of the version that the page names."""
    versions = {name: bench.players[name].version() if name in bench.players else "" for name in NAMES}
    if request.config.getoption("--update-docs"):
        text = DOC.read_text()
        made = re.sub(
            r"(?s)(<!-- verdicts.*?-->\n).*(?=<!-- end)", lambda m: f"{m[1]}\n{tables(versions)}\n", text
        )
        DOC.write_text(made)
    page: dict[tuple[str, str, str], list[str]] = {}
    for _, source, form, name, verdict in told():
        page.setdefault((source, form, name), []).append(verdict)
    differ = []
    for (source, form, name), found in FOUND.items():
        cells = page.get((source, form, f"{name} {versions[name]}"))
        if cells and name not in UNSTEADY and cells != [*found]:
            differ.append((source, form, name, found, cells))
    assert differ == []
    assert {(source, form) for source, form, _ in page} == {case.values[:2] for case in cases()}
