"""Decoded groups of pictures, kept in a worker: neighbouring frames cost no second decode. Worker side only.

A first frame of a group is decoded as soon as can be: from its key frame to itself, with what nobody refers
to left out, and the decoder drained. A second one means that somebody steps through: from there on every
frame is decoded, the decoder is kept as it stands, and each next frame costs the samples that were not yet
fed. One who steps back has the whole way to there decoded, once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING

from vfs import WorkerFile, worker_keeps
from vfs_mp4.decode import Decoder, Samples, opened, shown_frames
from vfs_mp4.visual import Job

if TYPE_CHECKING:
    import av

#: Groups kept at most; the daemon remembers as many when it chooses the worker of a job.
GROUPS = 64
#: Decoders kept standing in the middle of a group; each holds up to 16 pictures of its own.
DECODERS = 2


class Groups:
    """Decoded groups, the last used ones.

    budget: bytes of planes, None = what a worker keeps (41 frames of 1080p unless set otherwise); the frame
    given out may go beyond it.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._budget = worker_keeps() if budget is None else budget
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of the planes that are kept."""
        return sum(group.nbytes for group in self._groups.values())

    def frame(self, job: Job, data: bytes | WorkerFile) -> av.VideoFrame:
        """The wanted frame of a job; reads only what must be decoded. Raises as `shown_frames` does."""
        if job.group is None:
            return next(frame for _, frame in shown_frames(job, data, (job.wanted,)))
        group = self._groups.get(job.group)
        step = _Group.next
        if group is None:
            group = self._groups[job.group] = _Group(self._trim)
            step = _Group.first
        self._groups.move_to_end(job.group)
        found = group.frames.get(job.wanted)
        try:
            return step(group, job, Samples(job, data)) if found is None else found
        except BaseException:
            group.close()
            raise
        finally:
            self._settle(job.group)

    def _trim(self, group: _Group, wanted: int) -> None:
        """Stay within the budget: groups not used for long go first, then the group's own oldest frames."""
        while self.nbytes > self._budget or len(self._groups) > GROUPS:
            oldest = next(iter(self._groups.values()))
            if oldest is not group:
                self._groups.popitem(last=False)[1].close()
            elif not group.drop_oldest(wanted):
                break

    def _settle(self, used: Hashable) -> None:
        """Let no more decoders stand than are worth it, and no group that has nothing."""
        standing = [group for group in reversed(self._groups.values()) if group.decoder is not None]
        for group in standing[DECODERS:]:
            group.close()
        if used in self._groups and not self._groups[used].frames:
            self._groups.pop(used).close()


class _Group:
    """Frames that came out, by pts, and a decoder that has been fed the first `fed` samples of the group.

    passed: the greatest pts it has put out. whole_from: the pts from which on it leaves no frame out. latest:
    pts of the frame that was last asked for.
    """

    def __init__(self, trim: Callable[[_Group, int], None]) -> None:
        self.frames: dict[int, av.VideoFrame] = {}
        self.nbytes = 0
        self.decoder: Decoder | None = None
        self._trim = trim
        self._fed, self._passed = 0, -math.inf
        self._whole_from, self._latest = -math.inf, -math.inf

    def first(self, job: Job, samples: Samples) -> av.VideoFrame:
        """Decode to the wanted frame and not a sample further."""
        needed = len(samples) - job.spare
        samples.expect(0, needed)
        self._latest = job.wanted
        with opened(job) as decoder:
            for row in range(needed):
                skippable = job.pts[row] != job.wanted
                self._keep(decoder.decode(job.pts[row], samples[row], skippable=skippable), job.wanted)
                if job.wanted in self.frames:
                    break
            else:
                self._keep(decoder.drain(), job.wanted)
            return self._found(job, decoder)

    def next(self, job: Job, samples: Samples) -> av.VideoFrame:
        """Decode on to the wanted frame, from the start where that is behind."""
        if self.decoder is None or self._passed >= job.wanted:
            self.close()
            self.decoder = Decoder(job)
            self._whole_from = job.wanted if job.wanted > self._latest else -math.inf
        self._latest = job.wanted
        decoder = self.decoder
        samples.expect(self._fed, len(samples) - job.spare)
        while job.wanted not in self.frames and self._passed < job.wanted:
            if self._fed >= len(samples):
                self._keep(decoder.drain(), job.wanted)
                self.close()
                break
            pts, data = job.pts[self._fed], samples[self._fed]
            self._keep(decoder.decode(pts, data, skippable=pts < self._whole_from), job.wanted)
            self._fed += 1
        return self._found(job, decoder)

    def close(self) -> None:
        """Let the decoder go; the frames stay."""
        if self.decoder is not None:
            self.decoder.close()
        self.decoder, self._fed, self._passed = None, 0, -math.inf

    def drop_oldest(self, wanted: int) -> bool:
        """Let go of the frame that came out first; False when there is only the wanted one."""
        pts = next((pts for pts in self.frames if pts != wanted), None)
        if pts is not None:
            self.nbytes -= _size(self.frames.pop(pts))
        return pts is not None

    def _keep(self, frames: Iterable[av.VideoFrame], wanted: int) -> None:
        for frame in frames:
            if frame.pts is None:
                continue
            self._passed = max(self._passed, frame.pts)
            if frame.pts not in self.frames:
                self.frames[frame.pts] = frame
                self.nbytes += _size(frame)
                self._trim(self, wanted)

    def _found(self, job: Job, decoder: Decoder) -> av.VideoFrame:
        try:
            return self.frames[job.wanted]
        except KeyError:
            raise decoder.nothing("the frame") from None


def _size(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
