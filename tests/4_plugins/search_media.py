"""Moving pictures for tests of searching: different scenes that share nothing, cheap to make."""

from __future__ import annotations

import math
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def scene(seed: int, width: int, height: int, time: float) -> NDArray[np.uint8]:
    """A picture of a scene: soft shapes that move, each seed its own. Drawn at half its size, to be cheap."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height:2, 0:width:2].astype(np.float32)
    x, y = x / width, y / height
    shade = np.zeros(x.shape, np.float32)
    for _ in range(14):
        left, top, wide, tall, weight = chance.random(5)
        speed, phase = chance.uniform(0.05, 0.5), chance.uniform(0, 6.28)
        cx = 0.1 + 0.8 * left + 0.15 * math.sin(speed * 2 * time + phase)
        cy = 0.1 + 0.8 * top + 0.15 * math.cos(speed * 3 * time + phase)
        inside = ((x - cx) / (0.03 + 0.15 * wide)) ** 2 + ((y - cy) / (0.03 + 0.15 * tall)) ** 2
        shade += (weight - 0.4) * (inside < 1)
    lines = 0.15 * np.sin(2 * math.pi * (x * chance.integers(2, 9) + y * chance.integers(1, 6) + 0.05 * time))
    level = 110 + 90 * np.clip(shade, -1, 1) + 60 * lines
    tint = chance.uniform(0.5, 1.0, 3)
    small: NDArray[np.uint8] = np.clip(level[:, :, None] * tint, 0, 255).astype(np.uint8)
    return small.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def make(
    path: Path, seed: int, seconds: float = 12, size: tuple[int, int] = (320, 180), fps: int = 15
) -> Path:
    """An H.264 video with AAC sound of a scene."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed + 1000)
    with av.open(str(path), "w", format="mp4") as made:
        video: Any = made.add_stream(
            "libx264", Fraction(fps), options={"preset": "ultrafast", "crf": "24", "g": str(fps)}
        )
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        sound: Any = made.add_stream("aac", 16000)
        sound.layout = "mono"
        tones = chance.uniform(200, 3500, (int(seconds * 8) + 1, 3))
        for number in range(int(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(scene(seed, *size, number / fps), format="rgb24")
            made.mux(video.encode(frame))
        time = np.arange(int(seconds * 16000)) / 16000
        now = tones[(time * 8).astype(int)]
        wave = np.sin(2 * np.pi * now * time[:, None]).sum(axis=1) / 4
        wave = (wave + 0.02 * chance.standard_normal(len(wave))).astype(np.float32)
        for at in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="fltp", layout="mono")
            block.rate, block.pts = 16000, at
            made.mux(sound.encode(block))
        made.mux(video.encode(None))
        made.mux(sound.encode(None))
    return path


def transform(source: Path, target: Path, *arguments: str) -> Path:
    """What ffmpeg makes of a video."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), *arguments, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target
