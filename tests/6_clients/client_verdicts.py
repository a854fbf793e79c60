"""What players make of a file: which pictures they show, how long they say it is, where a seek lands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from client_browser import Page
from client_players import MPV, SOME, as_gray, rank, ranks
from numpy.typing import NDArray
from PIL import Image

#: Of all pictures that players are shown.
SIZE = (160, 96)
#: VLC refuses to be run by root: in a namespace of its own it is another user, with the same rights.
_NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()
#: It plays in real time, without a screen or a sound card.
_VLC = (*_NOBODY, "vlc", "--intf=dummy", "--no-audio", "--vout=dummy", "--no-video-title-show")
_VLC += ("--no-drop-late-frames", "--no-skip-frames", "--video-filter=scene", "--scene-format=png")
_VLC += ("--scene-ratio=1", "--play-and-exit", "--quiet")
#: A seek that is off by more pictures went nowhere.
LOST = 5
#: Seconds, less than a picture lasts.
JUST = 0.005
_GRAY = "videoconvert ! video/x-raw,format=GRAY8"


@dataclass(frozen=True)
class File:
    """A file with pictures of `source`, of `SIZE`. url: its name on the server of a page."""

    path: Path
    source: Path
    url: str


@dataclass(frozen=True)
class Verdict:
    """shown: ranks of the pictures in the source, in order; seek: the one that a seek shows, None: none.

    duration: seconds, None where the player does not tell.
    """

    shown: tuple[int, ...]
    seek: int | None
    duration: float | None
    complaint: str = ""

    def against(self, wanted: range, sought: int | None, length: float | None) -> str:
        """In words, "exact" where all is as it should be. sought, length (seconds): None = any will do."""
        if not self.shown:
            return "does not play"
        shown = set(self.shown)
        early = sum(rank < wanted.start for rank in self.shown)
        late = sum(rank >= wanted.stop for rank in self.shown)
        missing = len(set(wanted) - shown)
        found = [f"{early} before"] * bool(early) + [f"{late} after"] * bool(late)
        found += [f"{missing} missing"] * bool(missing)
        if sought is not None and self.seek != sought:
            lost = self.seek is None or abs(self.seek - sought) > LOST
            found.append("no seek" if lost else f"seek {(self.seek or 0) - sought:+d}")
        off = 0.0 if self.duration is None or length is None else self.duration - length
        # A player may take the end of the sound, a packet later.
        found += [f"{off:+.2f} s"] * (abs(off) > 0.06)
        found += ["complains"] * bool(self.complaint)
        return ", ".join(found) or "exact"


#: Words of a verdict that are worse than none of them, and how much.
_FAULT = re.compile(
    r"(\d+) (before|after|missing)|seek ([+-]\d+)|([+-][\d.]+) s|(does not play|no seek|complains)"
)


def faults(verdict: str) -> dict[str, float]:
    """What is wrong by a verdict, and by how much."""
    found: dict[str, float] = {}
    for count, kind, seek, length, other in _FAULT.findall(verdict):
        if count:
            kind = "missing" if kind == "missing" else "too many"
            found[kind] = found.get(kind, 0) + int(count)
        else:
            name = "seek" if seek else "length" if length else other
            found[name] = abs(float(seek or length or 1))
    return found


#: What is no difference: a picture that another rounding chooses, a frame of sound.
_SLACK = {"seek": 1, "length": 0.05}
#: VLC plays in real time, and `--start-time` lands where it was by then: not the same each time.
UNSTEADY = {"VLC": {"seek": 120, "no seek": 1, "missing": 2, "too many": 2}}


def no_worse(player: str, ours: str, theirs: str) -> bool:
    """Whether no fault of the first verdict is worse than in the second."""
    known, slack = faults(theirs), _SLACK | UNSTEADY.get(player, {})
    if "does not play" in known:
        return True
    if "no seek" in known:
        known["seek"] = LOST
    return all(much <= known.get(kind, 0) + slack.get(kind, 0) for kind, much in faults(ours).items())


# ---------------------------------------------------------------- players


@dataclass(frozen=True)
class Player:
    """look(file, seconds to seek to, an empty folder) plays a file. version: its own word, "" = missing.

    A seek is to just after a picture begins, which players that show the first one from there on are told.
    """

    name: str
    version: Callable[[], str]
    look: Callable[[File, float, Path], Verdict]


def _run(*command: str | Path, timeout: float = 40) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(list(map(str, command)), capture_output=True, timeout=timeout, check=False)


def _version(pattern: str, *command: str) -> Callable[[], str]:
    def ask() -> str:
        if shutil.which(command[0]) is None:
            return ""
        done = _run(*command)
        found = re.search(pattern, (done.stdout + done.stderr).decode())
        return found[1] if found else ""

    return ask


def _known(file: File, raw: bytes) -> tuple[int, ...]:
    """Ranks of pictures in gray, one after another."""
    width, height = SIZE
    whole = np.frombuffer(raw, np.uint8)
    whole = whole[: len(whole) // (width * height) * (width * height)].reshape(-1, height, width)
    return tuple(rank(file.source, p[::SOME, ::SOME].astype(np.float32)) for p in whole)


def _first(found: Sequence[int]) -> int | None:
    return found[0] if found else None


def _once(found: Sequence[int]) -> tuple[int, ...]:
    """Without what is shown again at once."""
    return tuple(rank for rank, _ in groupby(found))


def _ffmpeg(file: File, at: float, folder: Path) -> Verdict:
    def shows(*options: str) -> tuple[tuple[int, ...], str]:
        out = (
            "-map",
            "0:v:0",
            "-vsync",
            "passthrough",
            "-enc_time_base",
            "-1",
            "-pix_fmt",
            "gray",
            "-f",
            "rawvideo",
            "-",
        )
        done = _run("ffmpeg", "-nostdin", "-v", "error", *options, "-i", file.path, *out)
        return _known(file, done.stdout), done.stderr.decode()

    told = json.loads(_run("ffprobe", "-v", "error", "-of", "json", "-show_format", file.path).stdout)
    shown, complaint = shows()
    sought, more = shows("-ss", f"{max(at - JUST, 0):.6f}", "-t", "0.01")
    length = told.get("format", {}).get("duration")
    return Verdict(shown, _first(sought), float(length) if length else None, complaint + more)


def _mpv(file: File, at: float, folder: Path) -> Verdict:
    def shows(name: str, *options: str) -> tuple[list[int], str]:
        (folder / name).mkdir()
        how = ("--vo=image", "--vo-image-format=png", "--vo-image-png-compression=0", "--no-audio")
        done = _run(*MPV, *how, f"--vo-image-outdir={folder / name}", *options, file.path)
        return ranks(file.source, folder / name), (done.stdout + done.stderr).decode()

    (folder / "length").mkdir()
    tell = ("--vo=null", "--ao=null", "--frames=1", "--term-playing-msg=${=duration}")
    length = _run("mpv", "--no-config", *tell, file.path).stdout.decode().split("\n")
    shown, complaint = shows("all")
    sought, more = shows("seek", f"--start={max(at - JUST, 0):.6f}", "--hr-seek=yes", "--frames=1")
    number = next((float(n) for n in length if re.fullmatch(r"\d+\.\d+", n)), None)
    return Verdict(_once(shown), _first(sought), number, complaint + more)


def _vlc(file: File, at: float, folder: Path) -> Verdict:
    def shows(name: str, *options: str) -> list[int]:
        (folder / name).mkdir()
        _run(*_VLC, f"--scene-path={folder / name}", "--scene-prefix=s", *options, file.path, "vlc://quit")
        found = []
        for picture in sorted((folder / name).iterdir()):
            # Some lines are more than the picture has.
            with Image.open(picture) as whole:
                found.append(rank(file.source, as_gray(whole.crop((0, 0, *SIZE)))))
        return found

    return Verdict(_once(shows("all")), _first(shows("seek", f"--start-time={at:.6f}")), None)


def _gstreamer(file: File, at: float, folder: Path) -> Verdict:
    raw, sought = folder / "all.gray", folder / "seek.gray"
    source = ("filesrc", f"location={file.path}", "!", "decodebin", "!")
    done = _run("gst-launch-1.0", "-q", *source, *_GRAY.split(), "!", "filesink", f"location={raw}")
    sinks = (f"--videosink={_GRAY} ! filesink location={sought}", "--audiosink=fakesink")
    _run("gst-play-1.0", "--no-interactive", "-q", f"--start-position={at:.6f}", *sinks, file.path)
    told = _run("gst-discoverer-1.0", file.path).stdout.decode()
    length = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", told)
    seconds = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else None
    found = [_known(file, p.read_bytes()) if p.exists() else () for p in (raw, sought)]
    return Verdict(found[0], _first(found[1]), seconds, done.stderr.decode())


def _opencv(file: File, at: float, folder: Path) -> Verdict:
    def next_rank(reader: cv2.VideoCapture) -> int | None:
        there, picture = reader.read()
        if not there:
            return None
        colours: NDArray[np.uint8] = np.ascontiguousarray(picture[:, :, ::-1])
        return rank(file.source, as_gray(Image.fromarray(colours)))

    reader = cv2.VideoCapture(str(file.path), cv2.CAP_FFMPEG)
    count, rate = reader.get(cv2.CAP_PROP_FRAME_COUNT), reader.get(cv2.CAP_PROP_FPS)
    shown = tuple(iter(lambda: next_rank(reader), None))
    reader.set(cv2.CAP_PROP_POS_MSEC, at * 1000)
    sought = next_rank(reader)
    reader.release()
    return Verdict(shown, sought, count / rate if rate else None)


PLAYERS = [
    Player("ffmpeg", _version(r"version (\d[\d.]*)", "ffmpeg", "-version"), _ffmpeg),
    Player("mpv", _version(r"mpv (\d[\d.]*)", "mpv", "--version"), _mpv),
    Player("VLC", _version(r"version (\d[\d.]*)", *_NOBODY, "vlc", "--version"), _vlc),
    Player("GStreamer", _version(r"GStreamer (\d[\d.]*)", "gst-launch-1.0", "--version"), _gstreamer),
    Player("OpenCV", lambda: cv2.__version__, _opencv),
]


def chromium(page: Page) -> Player:
    """A bare `<video>`. Pictures between the first and the last are not looked at."""

    def look(file: File, at: float, folder: Path) -> Verdict:
        state, first = page.open("plain", file.url)
        length = state["duration"]
        _, last = page.seek(length - 0.01)
        state, sought = page.seek(at)
        edges = rank(file.source, first), rank(file.source, last)
        complaint = "; ".join(state["troubles"])
        return Verdict(tuple(range(edges[0], edges[1] + 1)), rank(file.source, sought), length, complaint)

    return Player("Chromium", lambda: str(page.driver.capabilities["browserVersion"]), look)
