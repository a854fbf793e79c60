#!/usr/bin/env python3
"""Make a sample library: `DIR/USER/` as the video application lays it out in its bucket.

    python scripts/sample_library.py .demo/user_data

Games in H.264 and HEVC, progressive (tables in front, tables at the end) and fragmented (one with sidecars),
clips and exports cut from them, highlight pictures, an H4MK container, and the database that describes all.
Every picture carries its number in the game, so that a wrong frame can be seen. The same bytes every time.
"""

from __future__ import annotations

import argparse
import calendar
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw
from sample_media import encode, sidecars
from vfs_h4mk.pack import EXPORT_SAFE, LEAST_BLOCK, Writer, blocks_of, export_meta, export_seeks

from vfs.userdata import SCHEMA

#: Width and height of games, and of exports.
SIZE = (480, 270)
TALL = (270, 480)


#: A container, as another program of the same users uploads it.
CONTAINER = "uploads/harbor.h4mk"


def hex_name(what: str, digits: int) -> str:
    """The stable name of a file, as the application's random ones look."""
    return hashlib.sha256(what.encode()).hexdigest()[:digits]


@dataclass(frozen=True)
class Game:
    """A game to encode; seconds is its length."""

    number: int
    opponent: str
    date: str
    kind: str
    tournament: str | None
    codec: str
    seconds: int
    fps: Fraction = Fraction(30)
    fragmented: bool = False
    faststart: bool = True
    with_sidecars: bool = False

    @property
    def name(self) -> str:
        """As the application shows it."""
        return f"{'vs' if self.kind == 'home' else 'at'} {self.opponent} {self.date}"

    @property
    def path(self) -> str:
        """The key below the user's prefix."""
        return f"games/{hex_name(f'game {self.number}', 12)}.mp4"


GAMES = (
    Game(1, "Harbor FC", "2025-03-08", "home", None, "libx264", 20),
    Game(
        2, "Northside United", "2025-03-15", "away", None, "libx265", 12, Fraction(30000, 1001), False, False
    ),
    Game(3, "River Rovers", "2025-03-22", "away", "Spring Cup", "libx264", 20, fragmented=True,
         with_sidecars=True),
    Game(4, "Östra IF", "2025-03-23", "home", "Spring Cup", "libx265", 10, fragmented=True),
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A marked moment of a game, in whole seconds, which are key frames here."""

    number: int
    game: int
    start: int
    end: int
    rating: int
    tags: tuple[str, ...]
    notes: str | None

    @property
    def path(self) -> str:
        """The key below the user's prefix."""
        return f"raw_clips/{hex_name(f'clip {self.number}', 12)}.mp4"


CLIPS = (
    Clip(1, 1, 3, 7, 5, ("Goals",), "Left foot, far post"),
    Clip(2, 1, 12, 16, 4, ("Dribble", "1v1 Attack"), None),
    Clip(3, 2, 4, 7, 3, ("Interceptions",), "Reads the pass early"),
    Clip(4, 3, 5, 9, 5, ("Assists", "Through Ball"), "Sees the run; 'no look' pass"),
    Clip(5, 3, 14, 18, 2, (), None),
    Clip(6, 4, 2, 6, 4, ("Tackles",), "Clean"),
)


@dataclass(frozen=True)
class Project:
    """An edit in portrait format; clips by number."""

    number: int
    name: str
    clips: tuple[int, ...]
    exported: bool

    @property
    def working(self) -> str:
        """The key of the processed video."""
        return f"working_videos/working_{self.number}_{hex_name(f'working {self.number}', 8)}.mp4"

    @property
    def final(self) -> str:
        """The key of the exported video."""
        return f"final_videos/{self.name.replace(' ', '_')}_final.mp4"


PROJECTS = (Project(1, "Spring Highlights", (1, 4), True), Project(2, "Defending", (3, 6), False))
#: Frames of a clip for which the application keeps a picture: clip, frame of the clip.
HIGHLIGHTS = ((1, 30), (1, 90), (4, 45))


# ---------------------------------------------------------------- media


def make_game(root: Path, game: Game) -> None:
    """Encode one game, and its sidecars where it has them."""
    path = root / game.path
    encode(
        path, codec=game.codec, frames=round(game.seconds * game.fps), fps=game.fps,
        gop=round(game.fps), fragmented=game.fragmented, faststart=game.faststart, size=SIZE,
    )  # fmt: skip
    if game.with_sidecars:
        sidecars(path)


def make_exports(root: Path) -> None:
    """Encode one portrait video, and use it for all of them."""
    keys = [key for p in PROJECTS for key in (p.working, *([p.final] if p.exported else []))]
    first = encode(root / keys[0], frames=120, size=TALL)
    for key in keys[1:]:
        shutil.copyfile(first, root / key)


def cut(source: Path, target: Path, start: int, end: int) -> None:
    """Copy the packets of [start, end) seconds, from key frame to key frame, and of the sound beside them."""
    with av.open(str(source)) as given, av.open(str(target), "w", format="mp4") as made:
        streams: dict[int, Any] = {s.index: made.add_stream_from_template(s) for s in given.streams}
        inside = False
        for packet in given.demux():
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            at = packet.pts * packet.time_base
            if packet.stream.type == "video":
                # The last key frame may fall a fraction of a frame before its second (29.97 fps).
                inside = start - 0.05 <= at < end - 0.05 if packet.is_keyframe else inside
                taken = inside
            else:
                taken = start <= at < end
            if taken:
                shift = int(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                made.mux(packet)


def make_highlight(clip: Path, target: Path, number: int) -> None:
    """Frame `number` of a clip with a ring around the player."""
    with av.open(str(clip)) as given:
        frame = next(f for i, f in enumerate(given.decode(video=0)) if i == number)
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    ImageDraw.Draw(picture).ellipse((190, 90, 290, 180), outline=(255, 255, 255), width=4)
    picture.save(target)


def make_media(root: Path) -> None:
    """All files but the database. Encoders get one thread each, so two games are made at a time."""
    for folder in ("games", "raw_clips", "working_videos", "final_videos", "highlights"):
        (root / folder).mkdir(parents=True)
    workers = max(1, min(4, len(os.sched_getaffinity(0))))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # HEVC takes longest: first.
        games = sorted(GAMES, key=lambda game: game.codec, reverse=True)
        jobs = [pool.submit(make_game, root, game) for game in games]
        jobs.append(pool.submit(make_exports, root))
        for job in jobs:
            job.result()
    by_number = {game.number: game for game in GAMES}
    for clip in CLIPS:
        cut(root / by_number[clip.game].path, root / clip.path, clip.start, clip.end)
    make_container(root / GAMES[0].path, root / CONTAINER)
    for (number, frame), name in zip(HIGHLIGHTS, highlight_names(), strict=True):
        make_highlight(root / CLIPS[number - 1].path, root / name, frame)


def make_container(video: Path, target: Path) -> None:
    """A game once more, in an H4MK container; every 24th of its blocks can be sought."""
    target.parent.mkdir(parents=True)
    with video.open("rb") as source, target.open("wb") as out:
        writer = Writer(out)
        for block in blocks_of(source, LEAST_BLOCK):
            writer.block(block)
        seeks = export_seeks(writer.sizes, 30.0, 24)
        writer.finish(seeks, export_meta(LEAST_BLOCK, 30.0, 24), EXPORT_SAFE)


def highlight_names() -> list[str]:
    """`highlights/clip_{id}_frame_{n}_kf{i}.png`, i counting within the clip."""
    counts: dict[int, int] = {}
    names = []
    for clip, frame in HIGHLIGHTS:
        names.append(f"highlights/clip_{clip}_frame_{frame}_kf{counts.get(clip, 0)}.png")
        counts[clip] = counts.get(clip, 0) + 1
    return names


# ---------------------------------------------------------------- database


def rows(root: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Every row of the library: table and columns."""
    for game in GAMES:
        yield "games", {
            "name": game.name, "video_path": game.path, "duration": float(game.seconds),
            "fps": round(float(game.fps), 3), "width": SIZE[0], "height": SIZE[1],
            "opponent_name": game.opponent, "game_date": game.date, "game_type": game.kind,
            "tournament_name": game.tournament, "created_at": f"{game.date} 18:30:00",
            "updated_at": f"{game.date} 19:05:00",
        }  # fmt: skip
    for clip in CLIPS:
        yield "raw_clips", {
            "game_id": clip.game, "video_path": clip.path, "start_time": float(clip.start),
            "end_time": float(clip.end), "rating": clip.rating, "tags": json.dumps(clip.tags),
            "notes": clip.notes, "created_at": "2025-03-24 20:00:00",
        }  # fmt: skip
    for project in PROJECTS:
        yield from _project_rows(root, project)


def _project_rows(root: Path, project: Project) -> Iterable[tuple[str, Mapping[str, Any]]]:
    made = "2025-03-25 09:10:00"
    yield "projects", {
        "name": project.name, "working_video_path": project.working, "has_working_video": 1,
        "has_overlay_edits": int(project.exported), "has_final_video": int(project.exported),
        "created_at": made, "updated_at": made, "last_opened_at": "2025-03-26 07:45:00",
    }  # fmt: skip
    for index, clip in enumerate(project.clips):
        crop = [{"time": 0.0, "x": 164, "y": 0, "width": 152, "height": 270}]
        yield "working_clips", {
            "project_id": project.number, "raw_clip_id": clip, "clip_index": index,
            "crop_keyframes": json.dumps(crop), "is_exported": int(project.exported), "created_at": made,
        }  # fmt: skip
    if project.exported:
        yield "highlight_regions", {
            "project_id": project.number, "start_frame": 30, "end_frame": 90, "x": 240.0, "y": 135.0,
            "radius_x": 50.0, "radius_y": 45.0, "created_at": made,
        }  # fmt: skip
        yield "final_videos", {
            "project_id": project.number, "name": project.name, "video_path": project.final,
            "source_type": "project", "duration": 4.0, "file_size": (root / project.final).stat().st_size,
            "created_at": "2025-03-26 08:00:00",
        }  # fmt: skip


def make_database(root: Path) -> None:
    """`database.sqlite`: the schema of the application and a row for every file."""
    database = sqlite3.connect(root / "database.sqlite")
    try:
        database.executescript(SCHEMA)
        for table, columns in rows(root):
            marks = ", ".join(f":{name}" for name in columns)
            database.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", columns)
        database.commit()
    finally:
        database.close()


# ---------------------------------------------------------------- command line


def make_library(base: Path, user: str = "a") -> bool:
    """Make `base/user/`, whole or not at all; False when it was there already."""
    target = base / user
    if (target / "database.sqlite").exists():
        return False
    if target.exists():
        raise FileExistsError(f"{target} is there, but is no library of this script: choose another folder")
    base.mkdir(parents=True, exist_ok=True)
    unfinished = base.with_name(f".{base.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    make_media(unfinished)
    make_database(unfinished)
    then = calendar.timegm((2025, 3, 26, 8, 0, 0))
    for path in unfinished.rglob("*"):
        os.utime(path, (then, then))
    unfinished.rename(target)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Make a library and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", type=Path, help="the folder that stands for the bucket")
    parser.add_argument("--user", default="a", help="the user id, the first component of every key")
    chosen = parser.parse_args(arguments)
    try:
        made = make_library(chosen.base, chosen.user)
    except OSError as error:
        print(f"sample_library: {error}", file=sys.stderr)
        return 1
    files = [p for p in (chosen.base / chosen.user).rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    print(f"{'made' if made else 'found'} {chosen.base / chosen.user}: {len(files)} files, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
