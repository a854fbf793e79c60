"""Many frames of a window, in as few jobs as decode nothing twice: one for each group of pictures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vfs import Damaged, Layout, Place, Source
from vfs_mp4 import frames
from vfs_mp4.model import Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.visual import Job, read_entry

#: Pixels a worker decodes in a second, on a slow machine and of a demanding codec. A job of more than a few
#: seconds at this pace gets a deadline of its own; a shorter one has that of the settings.
PACE = 12_500_000
_LONG = 20


@dataclass(frozen=True, eq=False)
class Run:
    """Frames decoded from one key frame on. pts: of each, in display order; one that is shown twice twice."""

    layout: Layout
    job: Job
    pts: tuple[int, ...]

    @property
    def needed(self) -> Layout:
        """The samples without which not all of the frames come out."""
        return self.layout.window(0, sum(self.job.sizes[: len(self.job.sizes) - self.job.spare]))

    def deadline(self, each: float = 0.0) -> float | None:
        """Seconds for a worker that takes `each` more for a picture; None = those of the settings."""
        entry = read_entry(self.job)
        seconds = len(self.job.sizes) * entry.width * entry.height / PACE + each * len(self.pts)
        return seconds if seconds > _LONG else None

    def source(self, place: Place) -> Source:
        """What a worker reads."""
        return frames.source(place, self.layout, self.needed.size)


def starts(track: Track, rows: Ticks) -> Ticks:
    """The sync sample that each of these decode rows is decoded from; -1 where none is before it.

    The last one at or before it, one earlier for a leading picture (see `timeline.start_row`).
    """
    samples = track.samples
    syncs = np.append(np.flatnonzero(samples.sync), -1)  # at index -1, too: none
    at = np.searchsorted(syncs[:-1], rows, "right") - 1
    while (leads := (at >= 0) & (rows > syncs[at]) & (samples.pts[rows] < samples.pts[syncs[at]])).any():
        at = at - leads
    found: Ticks = syncs[at]
    return found


def split(window: Window, wanted: Sequence[int] | Ticks) -> list[Ticks]:
    """Indices into `Window.shown` (ascending), cut where another key frame is to be decoded from."""
    indices = np.asarray(wanted, np.int64)
    begins = starts(window.track, window.shown.order[indices])
    return np.split(indices, np.flatnonzero(np.diff(begins)) + 1)


def coded(window: Window, *, spare: int = 0) -> tuple[Layout, Job]:
    """`frames.coded`. Raises what that raises, and Damaged for tables that point outside the file."""
    try:
        return frames.coded(window, spare=spare)
    except ValueError as error:
        raise Damaged(str(error)) from error


def run(window: Window, wanted: Ticks, *, spare: int = 0) -> Run:
    """The job for one piece of `split`. Raises what `coded` raises."""
    part = replace(window, first=int(wanted[0]), last=int(wanted[-1]))
    layout, job = coded(part, spare=spare)
    return Run(layout, job, tuple(window.track.samples.pts[window.shown.order[wanted]].tolist()))
