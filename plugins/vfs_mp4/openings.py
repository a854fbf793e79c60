"""How a clip that follows another must begin: in HEVC the pictures that its decoding begins with may be CRA.

A CRA picture in the middle of a stream goes on with what came before: its order of display is counted on, and
what leads it (RASL) is decoded from pictures of the clip before. As BLA it begins anew and those are dropped,
which is what a clip means (ITU-T H.265 7.4.2.2, 8.1.3). The two differ in the type alone: six bits of each of
the picture's NAL units.
"""

from __future__ import annotations

from vfs import Damaged, Place
from vfs_mp4 import descriptions, splice
from vfs_mp4.plan import Window
from vfs_mp4.probe import Reader

#: NAL unit types: CRA, and BLA with leading pictures of any kind.
_CRA, _BLA = 21, 16
#: Pictures have up to 600 slices; what comes before them in a sample is parameter sets and messages.
_MAX_UNITS = 700
#: Read at once: all but the picture itself, whose own length is at its front.
_HEAD = 512


async def patches(place: Place, window: Window) -> tuple[tuple[int, int], ...]:
    """(offset in the file, byte) pairs that make the picture with which decoding begins BLA where it is CRA.

    Nothing for other codecs and other pictures. Reads the front of each NAL unit of one sample. Raises
    StoreError, Damaged.
    """
    track = window.track
    if track.codec not in ("hvc1", "hev1"):
        return ()
    width = descriptions.length_size(descriptions.entries(track)[0])
    row = splice.pictures(window)[0].low
    at, end = int(track.samples.offset[row]), int(track.samples.size[row]) + int(track.samples.offset[row])
    reader, found = Reader(place), []
    for _ in range(_MAX_UNITS):
        head = await reader.peek(at, min(width + 2, end - at), min(_HEAD, end - at))
        if len(head) < width + 2:
            break
        if head[width] >> 1 & 0x3F == _CRA:
            found.append((at + width, head[width] & 0x81 | _BLA << 1))
        at += width + int.from_bytes(head[:width], "big")
    else:
        raise Damaged(f"a picture of more than {_MAX_UNITS} NAL units")
    return tuple(found)
