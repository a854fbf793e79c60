"""What the view answers to: names, refusals, attributes, and what a file says of itself."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import trio

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import leading  # noqa: E402
from vfs_mp4.plugin import Videos, vfs_views  # noqa: E402

from vfs import Node, NoMedia, OutOfRange, ReelfsError, Settings, Spliced, Unsupported, View  # noqa: E402


def resolve(place: MemoryPlace, name: str) -> Node | None:
    return trio.run(Videos().resolve, place, name)


def test_the_hook_gives_a_view() -> None:
    views: list[View] = vfs_views(Settings())
    assert views[0].name == "mp4"


@pytest.mark.parametrize("name", ["a.mp4", "A.MP4", "a.m4v", "a.MoV", "a.qt"])
def test_it_applies_to_videos_by_name(name: str) -> None:
    assert Videos().applies(MemoryPlace(b"", f"games/{name}"))


@pytest.mark.parametrize("name", ["a.mkv", "mp4", "a.mp4.txt", "a.mp4.index.json"])
def test_it_applies_to_nothing_else(name: str) -> None:
    assert not Videos().applies(MemoryPlace(b"", f"games/{name}"))


def test_it_does_not_apply_to_folders() -> None:
    assert not Videos().applies(MemoryPlace(b"", "games/folder.mp4", is_folder=True))


def test_only_info_is_listed_and_listing_reads_nothing() -> None:
    place = MemoryPlace(exact.sample("h264").data, "games/x.mp4")
    assert trio.run(Videos().entries, place) == {"info.json": None}
    assert place.log == []


@pytest.mark.parametrize(
    "name",
    ["", "x", "5s", "5s.txt", "5s.frag.mp4", "5s.key.jpg", "1-2.jpg", "1-2.fast.mp4", "-1s.jpg", "nan.jpg",
     "1e3.jpg", "2-1.mp4", "1-1.mp4", "9999999999.jpg", "info.JSON"],
)  # fmt: skip
def test_what_is_not_offered_is_left_to_others_without_a_read(name: str) -> None:
    place = MemoryPlace(exact.sample("h264").data, "games/x.mp4")
    assert resolve(place, name) is None
    assert place.log == []


@pytest.mark.parametrize(
    "name", ["99s.jpg", "f110.jpg", "k4.jpg", "99s-100s.mp4", "f200-f300.mp4", "f90-1s.mp4", "99s.mp4"]
)
def test_beyond_the_end_is_out_of_range(name: str) -> None:
    with pytest.raises(OutOfRange):
        resolve(exact.sample("h264"), name)


@pytest.mark.parametrize("sample", ["h264", "h264_fragmented"])
def test_a_range_may_end_beyond_the_end(sample: str) -> None:
    node, whole = (resolve(exact.sample(sample), name) for name in ("3s-99s.mp4", "3s-.mp4"))
    assert isinstance(node, Spliced)
    assert isinstance(whole, Spliced)
    assert node.layout == whole.layout


def test_attributes_tell_where_a_clip_lies() -> None:
    node = resolve(exact.sample("ntsc"), "1s-2s.mp4")
    assert isinstance(node, Spliced)
    about = dict(node.attributes)
    assert about["start_frame_index"] == "0"
    assert about["timescale"] == "30000"
    assert about["default_sample_duration"] == "1001"
    assert about["frames"] == "31"
    assert Fraction(about["start_time"]) == pytest.approx(29 * 1001 / 30000, abs=1e-9)
    assert about["source"] == "games/ntsc.mp4"


def test_an_unknown_frame_rate_is_absent_never_zero() -> None:
    node = resolve(exact.sample("vfr"), "1s-2s.mp4")
    assert isinstance(node, Spliced)
    assert "default_sample_duration" not in node.attributes


def encrypted() -> MemoryPlace:
    """The sample with its sample entries renamed as those of protected tracks."""
    data = exact.sample("h264").data
    at = data.index(b"stsd")
    entry = data.index(b"avc1", at)
    return MemoryPlace(data[:entry] + b"encv" + data[entry + 4 :], "games/secret.mp4")


@pytest.mark.parametrize("name", ["1s.jpg", "1s.mp4", "1s-2s.mp4", "1s-2s.frag.mp4"])
def test_encrypted_media_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(Unsupported, match="encrypted"):
        resolve(encrypted(), name)


def test_a_file_without_media_has_no_derivatives() -> None:
    with pytest.raises(NoMedia):
        resolve(MemoryPlace(b"", "games/empty.mp4"), "1s.jpg")


def info(place: MemoryPlace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(trio.run(exact.produced, place, "info.json"))
    return found


def test_info_of_a_progressive_file() -> None:
    found = info(exact.sample("rotated_wide_pixels"))
    video, sound = found["streams"]
    assert found["format"]["form"] == "progressive"
    assert (video["codec_type"], video["codec_tag_string"]) == ("video", "avc1")
    assert (video["width"], video["height"], video["rotation"]) == (320, 180, 90)
    assert (video["avg_frame_rate"], video["variable_frame_rate"]) == ("30/1", False)
    assert (video["key_frames"], video["gop_max"], video["nb_frames_shown"]) == (4, 30, 110)
    assert video["key_frame_times"] == [0.0, 1.0, 2.0, 3.0]
    assert (sound["codec_type"], sound["channels"], sound["sample_rate"]) == ("audio", 1, 48000)
    assert found["fragments"] == []


def test_info_of_a_fragmented_file_lists_its_fragments() -> None:
    place = exact.sample("h264_fragmented")
    found = info(place)
    assert found["format"]["form"] == "fragmented"
    assert [place.data[f["offset"] + 4 : f["offset"] + 8] for f in found["fragments"]] == [b"moof"] * 4


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", [] if not exact.SHARED.is_dir() else [n for n in exact.listed() if n.startswith("derived__")]
)
def test_damaged_files_give_an_answer_or_an_error_of_reelfs(name: str) -> None:
    place = exact.shared(name)
    for wanted in ("info.json", "0s.mp4", "0s-2s.mp4", "0s-2s.key.mp4", "0s-2s.frag.mp4", "f0.jpg", "k0.jpg"):
        try:
            node = resolve(place, wanted)
        except ReelfsError:
            continue
        assert node is not None
        if isinstance(node, Spliced):
            assert all(extent.end <= place.size for extent in node.layout.extents)


# ---------------------------------------------------------------- NAL unit types


def unit(kind: int, length: int = 10) -> bytes:
    return length.to_bytes(4, "big") + bytes((kind << 1, 1)) + bytes(length - 2)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (unit(8), 8),
        (unit(35, 3) + unit(7), 7),
        (unit(39) + unit(9), 9),
        (unit(39, 900)[:256], None),
        (b"", None),
    ],
)
def test_the_first_picture_of_a_sample_tells_its_type(head: bytes, kind: int | None) -> None:
    assert leading.picture_type(head, 4) == kind
