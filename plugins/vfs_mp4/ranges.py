"""The view of ranges as pictures: `A-B.npy`, `A-B.gif` and `A-B.webp`."""

from __future__ import annotations

from collections.abc import Mapping

from vfs import Node, Place, parse_derived
from vfs_mp4 import arrays, previews
from vfs_mp4.hardware import Hardware
from vfs_mp4.selecting import attributes, is_video, window_of


class Ranges:
    """Ranges of one stored video as arrays and animations."""

    name = "mp4.ranges"

    def __init__(self, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """None: ranges are endless."""
        return {}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """A range. Raises OutOfRange, TooBig, MediaError, StoreError."""
        derived = parse_derived(name)
        if derived is None or derived.mode or not derived.selection.is_range:
            return None
        if derived.format != "npy" and derived.format not in previews.FORMATS:
            return None
        window = await window_of(place, derived.selection, exact_end=derived.format != "npy")
        about = attributes(place, derived.selection, window)
        if derived.format == "npy":
            return arrays.array(place, window, about, self._hardware)
        return await previews.preview(place, window, derived.format, about, self._hardware)
