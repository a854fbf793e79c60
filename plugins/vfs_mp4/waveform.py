"""The view of `waveform.png`: the peaks of the whole sound in one picture.

The sound is decoded a minute at a time, and of each minute only its peaks are kept: memory is bounded, and a
read that was given up goes on where it was. What is fetched is the sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from vfs import Bytes, MediaError, Node, OutOfRange, Place, gather, in_worker
from vfs_mp4 import hearing, peaks, soundline
from vfs_mp4.selecting import is_video
from vfs_mp4.soundline import Line

NAME = "waveform.png"
#: Part of every version: changed when the same sound would give another picture.
CODE = "mp4.waveform.2"
#: Pixels across. A column of a two-hour game is four seconds.
WIDTH = 1800
#: Seconds decoded at once: some 12 MB of stereo in a worker, a tenth of a second of its time.
MINUTE = 60
#: Minutes at once: one is fetched while another is decoded.
_AT_ONCE = 2


class Waveforms:
    """The sound of one stored video to look at."""

    name = "mp4.waveform"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The picture, where there is sound."""
        try:
            return {NAME: None} if await hearing.tracks(place) else {}
        except MediaError:
            # `info.json` tells what is wrong with the file.
            return {}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """The picture. Raises MediaError, StoreError."""
        if name != NAME or not await self.entries(place):
            return None
        return Bytes(
            produce=partial(_produce, place),
            version=f"{CODE}:{place.object.key}:{place.version}",
            keep=True,
            mtime_ns=place.mtime_ns,
            attributes={"source": place.path},
        )


async def _produce(place: Place) -> bytes:
    movie = (await hearing.whole(place)).movie
    heard = await hearing.line_of(place, movie, hearing.the_sound(movie))
    if not heard.length:
        raise OutOfRange(f"{place.path}: nothing sounds")
    works = [
        partial(place.derive, f"{CODE}.{number}", partial(_peaks, place, heard, bounds))
        for number, bounds in enumerate(_minutes(heard))
    ]
    return await in_worker(peaks.draw, b"".join(await gather(works, _AT_ONCE)))


async def _peaks(place: Place, heard: Line, bounds: list[int]) -> bytes:
    job, packets = soundline.window(heard, bounds[0], bounds[-1])
    inside = tuple(bound - bounds[0] for bound in bounds)
    return await in_worker(peaks.measure, job, await place.fetch(packets), inside)


def _minutes(heard: Line) -> list[list[int]]:
    """The samples at which columns begin, and the last ends, for each stretch of about a minute."""
    width = min(WIDTH, heard.length)
    columns = [heard.length * column // width for column in range(width + 1)]
    step = max(MINUTE * heard.format.rate * width // heard.length, 1)
    return [columns[at : at + step + 1] for at in range(0, width, step)]
