"""Views of MP4 and QuickTime files: clips, perfect reads, frames and `info.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from vfs import (
    Bytes,
    Damaged,
    Derived,
    Indexer,
    Layout,
    Node,
    Place,
    Settings,
    Spliced,
    View,
    hookimpl,
    in_thread,
    parse_derived,
)
from vfs_mp4 import frames, info, leading, render, segments, source, splice
from vfs_mp4.audio import Sounds
from vfs_mp4.demuxed import Demuxed
from vfs_mp4.hardware import Hardware
from vfs_mp4.indexes import Indexes
from vfs_mp4.options import Options
from vfs_mp4.pictures import Pictures
from vfs_mp4.plan import Window
from vfs_mp4.ranges import Ranges
from vfs_mp4.reels import Reels
from vfs_mp4.segments import Verbatim
from vfs_mp4.selecting import attributes, clip, is_video, maybe_in_thread, window_of
from vfs_mp4.storyboard import Storyboards
from vfs_mp4.subtitles import Texts
from vfs_mp4.userdata import UserClips
from vfs_mp4.waveform import Waveforms
from vfs_mp4.whole import Whole

INFO = "info.json"


@hookimpl
def vfs_views(settings: Settings) -> list[View]:
    """One view for each kind of thing. Raises ConfigError."""
    options = Options.load(settings)
    hardware = Hardware(wanted=options.hwaccel)
    pictures: list[View] = [Videos(hardware), Ranges(hardware), Pictures(hardware), Storyboards()]
    return [
        *pictures,
        Sounds(),
        Texts(),
        Waveforms(),
        Whole(),
        Indexes(),
        Reels(),
        UserClips(listed=settings.show_derived),
        Demuxed(),
    ]


@hookimpl
def vfs_indexers() -> list[Indexer]:
    """Indexes of fragmented videos."""
    from vfs_mp4.indexer import Frames  # what a mount has no use for

    return [Frames()]


@hookimpl
def vfs_prepare_worker() -> list[Callable[[], None]]:
    """The decoder takes a third of a second to import."""
    return [render.prepare]


class Videos:
    """Everything derived from one stored video."""

    name = "mp4"

    def __init__(self, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """What can be listed; selections are endless and resolve by name only."""
        return {INFO: None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`info.json`, or `SEL[.MODE].FMT` of the grammar. Raises OutOfRange, MediaError, StoreError."""
        if name == INFO:
            return Bytes(
                produce=partial(_info, place),
                version=f"{info.CODE}:{place.object.key}:{place.version}",
                mtime_ns=place.mtime_ns,
            )
        derived = parse_derived(name)
        if derived is None or not _offered(derived):
            return None
        try:
            return await _node(place, derived, self._hardware)
        except ValueError as error:  # An extent outside its object: the tables lie.
            raise Damaged(f"{place.path}: {error}") from error


def _offered(derived: Derived) -> bool:
    if derived.selection.is_range:
        return derived.format == "mp4" and derived.mode in ("", "key", "frag")
    return not derived.mode and (derived.format == "mp4" or derived.format in frames.FORMATS)


async def _info(place: Place) -> bytes:
    movie = await source.open_movie(place)
    return await in_thread(info.describe, movie)


async def _node(place: Place, derived: Derived, hardware: Hardware) -> Node:
    window = await window_of(place, derived.selection, exact_end=derived.format == "mp4")
    about = attributes(place, derived.selection, window)
    if derived.format in frames.FORMATS:
        return frames.frame(place, window, derived.format, about, hardware)
    if derived.mode == "frag" or not derived.selection.is_range:
        layout, index = await _perfect(place, window, sound=derived.selection.is_range)
        about["start_frame_index"] = str(index)
    else:
        played = splice.back_to_key(window) if derived.mode == "key" else window
        layout = await clip(place, played)
        about["start_frame_index"] = str(window.first - played.first)
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes=about)


async def _perfect(place: Place, window: Window, *, sound: bool) -> tuple[Layout, int]:
    """Whole stored fragments where there are some that can be moved, else fragments that are made."""
    stored = segments.verbatim(window)
    if stored is not None and await _can_move(place, stored):
        return stored.layout, stored.index(await leading.dropped(place, stored))
    made = await maybe_in_thread(window, partial(segments.made, sound=sound))
    return made.layout, made.index


async def _can_move(place: Place, stored: Verbatim) -> bool:
    first = stored.fragments[0]
    return segments.relocatable(await place.read(first.offset, first.moof_size))
