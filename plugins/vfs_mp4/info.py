"""`FILE@/info.json`: what is known of a stored movie, for people and scripts. Pure.

Names follow ffprobe's where it has one; times are seconds on the line of path times (0 = first shown).
"""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from typing import Any

import numpy as np

from vfs_mp4 import timeline
from vfs_mp4.model import Edit, Movie, Track

#: Changed when the same movie would be described by other bytes.
CODE = "mp4.info.2"
_KINDS = {"vide": "video", "soun": "audio", "text": "text", "sbtl": "subtitle", "subt": "subtitle"}


def describe(movie: Movie) -> bytes:
    """The description as indented JSON."""
    what = {
        "format": {
            "form": "progressive" if movie.init is None else "fragmented",
            "size": movie.object.size,
            "duration": seconds(movie.duration),
            "zero": seconds(movie.zero),
            "timescale": movie.timescale,
            "bit_rate": round(movie.object.size * 8 / movie.duration) if movie.duration else None,
            "damage": list(movie.damage),
        },
        "streams": [_stream(movie, track) for track in movie.tracks],
        "fragments": _fragments(movie),
    }
    return json.dumps(what, indent=1).encode() + b"\n"


def seconds(value: Fraction) -> float:
    """Seconds to the nanosecond."""
    return round(float(value), 9)


def _stream(movie: Movie, track: Track) -> dict[str, Any]:
    size = int(track.samples.size.sum())
    found: dict[str, Any] = {
        "id": track.track_id,
        "codec_type": _KINDS.get(track.handler, track.handler),
        "codec_tag_string": track.codec,
        "language": track.language,
        "time_base": f"1/{track.timescale}",
        "usable": track.usable,
        "encrypted": track.encrypted,
        "nb_samples": size // track.unit if track.unit else len(track.samples),
        "bytes": size,
        "edits": [_edit(movie, track, edit) for edit in track.edits],
    }
    if not track.usable:
        return found
    shown = timeline.shown(movie, track)
    found["nb_frames_shown"] = len(shown)
    if len(shown):
        start = Fraction(int(shown.time[0]), track.timescale)
        end = Fraction(int(shown.end[-1]), track.timescale)
        found |= {"start_time": seconds(start - movie.zero), "duration": seconds(end - start)}
    if track.handler == "vide":
        found |= _video(track) | _rate(track, shown) | _groups(movie, track, shown)
    if track.handler == "soun":
        found |= _audio(track)
    return found


def _edit(movie: Movie, track: Track, edit: Edit) -> dict[str, Any]:
    length = Fraction(edit.duration, movie.timescale) if movie.timescale else Fraction(0)
    media = Fraction(max(edit.media_time, 0), track.timescale) if track.timescale else Fraction(0)
    return {
        "duration": seconds(length),
        "media_time": None if edit.media_time < 0 else seconds(media),
        "rate": float(edit.rate),
    }


def _video(track: Track) -> dict[str, Any]:
    """Size of the first sample entry (after 24 bytes of it) and the turn of the track header's matrix."""
    stsd, tkhd = (track.boxes or {}).get("stsd", b""), (track.boxes or {}).get("tkhd", b"")
    found: dict[str, Any] = {}
    if len(stsd) >= 52:
        found["width"], found["height"] = struct.unpack_from(">HH", stsd, 48)
    start = 8 + (52 if tkhd[8:9] == b"\1" else 40)
    if len(tkhd) >= start + 36:
        a, b = struct.unpack_from(">2i", tkhd, start)
        found["rotation"] = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}.get(
            (int(np.sign(a)), int(np.sign(b)))
        )
    return found


def _audio(track: Track) -> dict[str, Any]:
    """Channels and rate of the first sample entry, as its fixed part says (version 0)."""
    stsd = (track.boxes or {}).get("stsd", b"")
    if len(stsd) < 52:
        return {}
    channels, _, _, _, rate = struct.unpack_from(">4HI", stsd, 40)
    return {"channels": channels, "sample_rate": rate >> 16}


def _rate(track: Track, shown: timeline.Shown) -> dict[str, Any]:
    """From first to last frame: how long the last one stays is often cut by the edit list's coarser clock."""
    steps = np.diff(shown.time)
    if not len(steps) or int(steps.sum()) <= 0:
        return {}
    average = Fraction(len(steps) * track.timescale, int(steps.sum())).limit_denominator(1_000_000)
    return {
        "avg_frame_rate": f"{average.numerator}/{average.denominator}",
        "variable_frame_rate": bool((steps != steps[0]).any()),
    }


def _groups(movie: Movie, track: Track, shown: timeline.Shown) -> dict[str, Any]:
    """Key frames and the lengths of the groups they begin, in samples."""
    keys = np.flatnonzero(track.samples.sync)
    lengths = np.diff(keys, append=len(track.samples))
    if not len(keys):
        return {"key_frames": 0}
    at = shown.time[track.samples.sync[shown.order]]
    times = [seconds(Fraction(int(t), track.timescale) - movie.zero) for t in at.tolist()]
    return {
        "key_frames": len(keys),
        "gop_min": int(lengths.min()),
        "gop_median": float(np.median(lengths)),
        "gop_max": int(lengths.max()),
        "key_frame_times": times,
    }


def _fragments(movie: Movie) -> list[dict[str, int]]:
    return [
        {"offset": f.offset, "moof_size": f.moof_size, "end": f.end, "decode_time": f.decode_time}
        for f in movie.fragments
    ]
