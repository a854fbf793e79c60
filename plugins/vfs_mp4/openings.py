"""How a clip that follows another must begin: with a picture that closes off what came before.

In HEVC that may be CRA. In the middle of a stream it goes on with what came before: its order of display is
counted on, and what leads it (RASL) is decoded from pictures of the clip before. As BLA it begins anew and
those are dropped, which is what a clip means (ITU-T H.265 7.4.2.2, 8.1.3). The two differ in the type alone:
six bits of each of the picture's NAL units. In H.264 it must be IDR: what follows a recovery point would be
decoded from pictures of the clip before (ITU-T H.264 8.2.4), and no patch makes another picture IDR.
"""

from __future__ import annotations

from vfs import Damaged, Place, Unsupported
from vfs_mp4 import descriptions, splice
from vfs_mp4.plan import Window
from vfs_mp4.probe import Reader

#: NAL unit types: CRA, and BLA with leading pictures of any kind.
_CRA, _BLA = 21, 16
#: H.264: a slice of a picture that is not IDR.
_SLICE = 1
#: Pictures have up to 600 slices; what comes before them in a sample is parameter sets and messages.
_MAX_UNITS = 700
#: Read at once: all but the picture itself, whose own length is at its front.
_HEAD = 512


async def patches(place: Place, window: Window) -> tuple[tuple[int, int], ...]:
    """(offset in the file, byte) pairs that let the picture with which decoding begins follow other pictures.

    None are needed but for HEVC. Reads the front of each NAL unit of one sample. Raises Unsupported where no
    patch helps, Damaged, StoreError.
    """
    avc = window.track.codec in ("avc1", "avc3")
    if not avc and window.track.codec not in ("hvc1", "hev1"):
        return ()
    found = []
    for at, head in await _units(place, window):
        if avc and head & 0x1F == _SLICE:
            raise Unsupported(
                "its pictures lean on an open group of pictures, which cannot follow another clip"
            )
        if not avc and head >> 1 & 0x3F == _CRA:
            found.append((at, head & 0x81 | _BLA << 1))
    return tuple(found)


async def _units(place: Place, window: Window) -> list[tuple[int, int]]:
    """(offset in the file, first byte) of the NAL units of the sample that decoding begins with."""
    samples = window.track.samples
    width = descriptions.length_size(descriptions.entries(window.track)[0])
    row = splice.pictures(window)[0].low
    at, end = int(samples.offset[row]), int(samples.offset[row] + samples.size[row])
    reader = Reader(place)
    found: list[tuple[int, int]] = []
    for _ in range(_MAX_UNITS):
        head = await reader.peek(at, min(width + 1, end - at), min(_HEAD, end - at))
        if len(head) <= width:
            return found
        found.append((at + width, head[width]))
        at += width + int.from_bytes(head[:width], "big")
    raise Damaged(f"a picture of more than {_MAX_UNITS} NAL units")
