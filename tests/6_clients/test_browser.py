"""Browsers on a mount behind a plain static HTTP server: hls/ and dash/ in the players of web pages, clips
and whole files in a bare `<video>`. They open, play, seek to the right picture, and sound in step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from client_browser import Page, chromium, needs_browser, served
from client_mounts import Mount, encode, mounted
from client_players import rank, truth

pytestmark = needs_browser

#: Ten seconds each, in more than one fragment. The first runs by default, the others with --slow.
VIDEOS: dict[str, dict[str, Any]] = {
    "h264": {},
    "fragmented": {"fragmented": True},
    "moov at end": {"faststart": False, "bframes": 3},
    "open group": {"open_gop": True, "bframes": 3},
    "uneven": {"gop": 47, "vfr": True, "frames": 270},
    "ntsc": {"fps": Fraction(30000, 1001), "gop": 60},
    "delayed": {"delay": Fraction(1, 5)},
    "trimmed": {"trim": Fraction(1, 2)},
    "opus": {"audio_codec": "libopus"},
    "silent": {"audio": False},
    "vp9": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
    "av1": {"codec": "libsvtav1", "audio_codec": "libopus"},
}
#: Player and manifest.
PLAYERS = [("hls", "hls/master.m3u8"), ("dash", "dash/manifest.mpd")]
PLAYERS += [("shaka", manifest) for _, manifest in PLAYERS]
#: Seconds: far ahead at the end of a fragment, at the begin of another, back again, into the first.
TIMES = (5.98, 8.01, 3.34, 1.51)
START = 5.21
#: Sound may be this many seconds from where it belongs: lips are noticed at 45 ms.
IN_STEP = 0.020
#: FFmpeg's own fragments begin their sound late: the tone of time 0 is heard with the first picture.
HEARD_LATE = {"fragmented": 2 / 30}


@dataclass(frozen=True)
class Shown:
    """A page over a mount of the videos."""

    page: Page
    mount: Mount

    def source(self, name: str) -> Path:
        return self.mount.source / f"{name}.mp4"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    library, profile = tmp_path_factory.mktemp("web"), tmp_path_factory.mktemp("profile")
    with (
        mounted(tmp_path_factory.mktemp("mount"), library) as mount,
        served(mount.path) as site,
        chromium(profile) as driver,
    ):
        yield Shown(Page(driver, site), mount)


@pytest.fixture
def page(shown: Shown) -> Iterator[Page]:
    """The page, which must not be refused anything."""
    shown.page.site.answers.clear()
    yield shown.page
    assert shown.page.site.refused() == []


def made(shown: Shown, name: str) -> Path:
    """A video, encoded when a test first wants it."""
    path = shown.source(name)
    return path if path.exists() else encode(path, **{"frames": 300, "size": (160, 90), **VIDEOS[name]})


def cases() -> list[Any]:
    return [
        pytest.param(name, *player, marks=() if name == "h264" else pytest.mark.slow)
        for name in VIDEOS
        for player in PLAYERS
    ]


@pytest.mark.parametrize(("name", "player", "manifest"), cases())
def test_players_play_and_seek(shown: Shown, page: Page, name: str, player: str, manifest: str) -> None:
    source = made(shown, name)
    known, path = truth(source), f"{name}.mp4@/{manifest}"
    first, last = (frame.time - known.zero for frame in (known.frames[0], known.frames[-1]))
    state, picture = page.open(player, path)
    assert (state["troubles"], rank(source, picture)) == ([], 0)
    # Pictures or sound may end first; shaka ends HLS with what ends first.
    ends = sorted((float(last) + 1 / 30, 10.0))
    assert ends[0] - 0.05 < state["duration"] < ends[1] + 0.05

    for time in (*TIMES, ends[0] - 0.1):
        state, picture = page.seek(time)
        assert (state["troubles"], state["currentTime"]) == ([], pytest.approx(time))
        assert rank(source, picture) == known.at(Fraction(time)), time

    # From the middle on, as a page that was left goes on.
    state, picture = page.open(player, path, START)
    assert (state["troubles"], state["currentTime"]) == ([], pytest.approx(START, abs=0.001))
    assert rank(source, picture) == known.at(Fraction(START))
    before = state["frames"]
    state, heard, since = page.play(1.0)
    assert (state["troubles"], state["currentTime"] > START + 0.9) == ([], True)
    assert state["frames"] - before > 20
    if VIDEOS[name].get("audio", True):
        about = since - HEARD_LATE.get(name, 0)
        assert heard.source_time(0, heard.length, about) == pytest.approx(about, abs=IN_STEP)
    page.seek(9.0)
    state, _, _ = page.play(5.0)
    assert (state["troubles"], state["ended"]) == ([], True)
    assert state["currentTime"] == pytest.approx(state["duration"], abs=0.05)
