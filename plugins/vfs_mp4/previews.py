"""Ranges as small animations that loop: which pictures, how long each, and how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np

from vfs import Bytes, Damaged, Layout, Place, TooBig, gather, in_thread, in_worker
from vfs_mp4 import animation, runs, shape, sheets
from vfs_mp4.hardware import Hardware
from vfs_mp4.model import Ticks
from vfs_mp4.plan import Window
from vfs_mp4.runs import Run
from vfs_mp4.shape import Size
from vfs_mp4.visual import Job, read_entry

FORMATS = frozenset(("gif", "webp"))
#: Part of every version: changed when the same range would come out as other bytes.
CODE = "mp4.preview.1"
#: Longest side in pixels; smaller pictures are not enlarged.
SIDE = 480
#: Least seconds between two pictures: every second one of 30 a second (15), every fourth of 60 (15), of 50
#: every fourth (12.5), all of 15. A little less than a fifteenth, for time stamps that are rounded.
STEP = Fraction(64, 1000)
#: Most pictures: 40 seconds of a game. A GIF of it has some 50 MB.
MAX_PICTURES = 600
#: Most stored media that is decoded for one: 40 seconds at 100 Mbit/s.
MAX_MEDIA = 512 << 20
#: Most bytes of the animation itself.
MAX_RESULT = 128 << 20
#: Ticks a second of the durations in each format, the fewest (browsers slow down what is below 20 ms), and
#: the most that its field holds.
_CLOCKS = {"gif": (100, 2, 0xFFFF), "webp": (1000, 20, 0xFFFFFF)}
#: Seconds a worker takes at most to make a picture small and write it; usually 20 ms.
SECONDS_EACH = 0.2
#: Groups of pictures at once: the next one is fetched while one is decoded.
_AT_ONCE = 3
_MEND = "take a shorter range"


async def preview(
    place: Place, window: Window, format: str, attributes: dict[str, str], hardware: Hardware
) -> Bytes:
    """The frames of a window as an animation. Raises TooBig over a limit, and what `runs.coded` raises."""
    found = await in_thread(plan, window)
    attributes |= {"width": str(found.size[0]), "height": str(found.size[1])}
    attributes |= {"pictures": str(len(found.times) - 1)}
    # Ranges of one group of pictures may need the same samples.
    chosen = f"{window.start}-{window.stop}"
    return Bytes(
        produce=partial(_produce, place, found, format, hardware),
        version=f"{CODE}:{'hardware:' * hardware.wanted}{found.reads.fingerprint()}:{chosen}:{format}",
        mtime_ns=place.mtime_ns,
        reads=found.reads,
        attributes=attributes,
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """What an animation is made of. times: when each picture comes up, and when the last goes, in seconds
    from the first; reads: the samples of all runs."""

    runs: tuple[Run, ...]
    times: tuple[Fraction, ...]
    size: Size
    reads: Layout


def plan(window: Window) -> Plan:
    """The pictures of a window. Raises as `preview`."""
    wanted = thinned(window)
    if len(wanted) > MAX_PICTURES:
        raise TooBig(f"more than {MAX_PICTURES} pictures for one animation; {_MEND}")
    parts = tuple(runs.run(window, indices) for indices in runs.split(window, wanted))
    media = sum(part.layout.size for part in parts)
    if media > MAX_MEDIA:
        raise TooBig(f"{media} bytes must be decoded for this, the limit is {MAX_MEDIA}; {_MEND}")
    size = shape.fitted(shape.upright(read_entry(parts[0].job), parts[0].job.tkhd), SIDE)
    ticks = [*window.shown.time[wanted].tolist(), int(window.shown.end[window.last])]
    times = tuple(Fraction(tick - ticks[0], window.track.timescale) for tick in ticks)
    return Plan(parts, times, size, Layout(span for part in parts for span in part.layout.spans))


def thinned(window: Window) -> Ticks:
    """Indices into `Window.shown`: the first frame, then each that comes `STEP` or more after the one before.

    Not more than one beyond `MAX_PICTURES`.
    """
    times = window.shown.time[window.first : window.last + 1]
    step = -int(-STEP * window.track.timescale // 1)
    kept: list[int] = []
    at = 0
    while at < len(times) and len(kept) <= MAX_PICTURES:
        kept.append(at)
        at = max(int(np.searchsorted(times, times[at] + step)), at + 1)
    return np.array(kept, np.int64) + window.first


async def _produce(place: Place, plan: Plan, format: str, hardware: Hardware) -> bytes:
    jobs = [partial(_stills, place, run, plan.size, format, hardware) for run in plan.runs]
    found = await gather(jobs, _AT_ONCE)
    shown = [stills.get(pts) for run, stills in zip(plan.runs, found, strict=True) for pts in run.pts]
    # What does not decode is left out, as players do: the picture before it stays.
    made = {number: picture for number, picture in enumerate(shown) if picture is not None}
    if not made:
        raise Damaged(f"{place.path}: none of the pictures comes out")
    pictures = list(made.values())
    if (total := sum(map(len, pictures))) > MAX_RESULT:
        raise TooBig(f"an animation of {total} bytes: the limit is {MAX_RESULT}; {_MEND}")
    times = [Fraction(0), *(plan.times[number] for number in list(made)[1:]), plan.times[-1]]
    join = animation.gif if format == "gif" else animation.webp
    return await in_thread(join, pictures, plan.size, durations(times, format))


async def _stills(place: Place, run: Run, size: Size, format: str, hardware: Hardware) -> dict[int, bytes]:
    async def work(job: Job) -> list[tuple[int, bytes]]:
        source, deadline = run.source(place), run.deadline(SECONDS_EACH)
        return await in_worker(sheets.stills, job, run.pts, size, format, source=source, deadline=deadline)

    return dict(await hardware.decoded(run.job, work))


def durations(times: Sequence[Fraction], format: str) -> list[int]:
    """How long each picture stays, in ticks of the format; rounded so that errors do not add up."""
    scale, least, most = _CLOCKS[format]
    bounds = [round(time * scale) for time in times]
    return [min(max(after - before, least), most) for before, after in pairwise(bounds)]
