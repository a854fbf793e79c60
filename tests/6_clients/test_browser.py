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
    "uneven": {"gop": 47, "vfr": True},
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
#: Seconds: within the first fragment, far ahead, back again, near the end.
TIMES = (0.51, 7.02, 3.34, 9.9)
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
    known = truth(source)
    state = page.open(player, f"{name}.mp4@/{manifest}")
    assert state["troubles"] == []
    end = float(known.frames[-1].time - known.zero) + 1 / 30
    assert state["duration"] == pytest.approx(end, abs=0.1)

    for time in TIMES:
        state, picture = page.seek(time)
        assert (state["troubles"], state["currentTime"]) == ([], pytest.approx(time))
        assert rank(source, picture) == known.at(Fraction(time)), time

    page.seek(2.0)
    before = state["frames"]
    state, heard, since = page.play(1.0)
    assert (state["troubles"], state["currentTime"] > 2.9) == ([], True)
    assert state["frames"] - before > 20
    if VIDEOS[name].get("audio", True):
        about = since - HEARD_LATE.get(name, 0)
        assert heard.source_time(0, heard.length, about) == pytest.approx(about, abs=IN_STEP)

    page.seek(9.0)
    state, _, _ = page.play(5.0)
    assert (state["troubles"], state["ended"]) == ([], True)
    assert state["currentTime"] == pytest.approx(state["duration"], abs=0.05)
