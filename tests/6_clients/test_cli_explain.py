"""`explain`: the text says what reading a path means, and nothing is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from vfs import Bytes, Directory, Extent, Inline, Layout, Node, Spliced, StoredObject, Symlink
from vfs.config import Settings
from vfs.explain import MAX_RANGES, explain, parse, related_notes
from vfs.found import Found
from vfs.telemetry import Status

GAME = StoredObject("games/x.mp4", 540_000_000, '"abc-2"', 1)


@dataclass
class FakePlan:
    requests: Sequence[tuple[StoredObject, int, int]] = ()
    cached_bytes: int = 0
    inline_bytes: int = 0


@dataclass
class FakeReader:
    answer: FakePlan = field(default_factory=FakePlan)
    asked: list[Layout] = field(default_factory=list)

    def plan(self, layout: Layout) -> FakePlan:
        self.asked.append(layout)
        return self.answer


def clip(*, size: int = 4_000_000) -> Found:
    layout = Layout((Inline(b"moov" * 500), Extent(GAME, 1_048_576, size)))
    node = Spliced(layout=layout, attributes={"start_frame_index": "3"})
    attributes = {"source": GAME.key, "etag": GAME.version, "start_frame_index": "3"}
    return Found("games/x@5s-9s.mp4", node, node.version, 1, 1.0, (GAME,), attributes)


async def never() -> bytes:
    raise AssertionError("explaining must not produce")


def found(node: Node, path: str = "a", **attributes: str) -> Found:
    return Found(path, node, attributes=attributes)


def text_of(what: Found, plan: FakePlan | None = None, status: Status | None = None) -> str:
    return explain(what, FakeReader(plan or FakePlan()), status or Status(source="r2://b"))


def test_a_clip_names_keys_etags_ranges_requests_bytes_and_price() -> None:
    plan = FakePlan(((GAME, 1_048_576, 3_000_000), (GAME, 5_000_000, 48_576)), 951_424, 2000)
    rows = parse(text_of(clip(), plan))
    assert rows["path"] == ["games/x@5s-9s.mp4"]
    assert rows["size"] == ["4,002,000 bytes (3.8 MiB)"]
    assert rows["key"] == ["games/x.mp4"]
    assert rows["stored"] == ["540,000,000 bytes (515.0 MiB)"]
    assert rows["etag"] == ['"abc-2"']
    assert rows["xattr"] == ["start_frame_index = 3"]
    assert rows["spans"] == ["1 synthesised (2.0 KiB), 1 stored (3.8 MiB) of 1 object"]
    assert rows["requests"] == ["2 Class B ($0.00000072)"]
    assert rows["bytes"][0].startswith("3,048,576 bytes (2.9 MiB) to fetch, 951,424 bytes")
    assert rows["range"] == [
        "games/x.mp4 bytes=1048576-4048575 (2.9 MiB)",
        "games/x.mp4 bytes=5000000-5048575 (47.4 KiB)",
    ]


def test_the_comparison_of_a_whole_file_is_told() -> None:
    """It is a request more: of a large stored file as it is, and of nothing else."""
    large, small = GAME, StoredObject("small.bin", 8 << 20, '"s"', 1)
    told = parse(text_of(found(Spliced(layout=Layout.whole(large)))))
    assert told["checksum"] == ["1 Class B more ($0.00000036) when it is read from start to end"]
    local = Settings.load({"source": "/folder"}, environ={})
    for text in (
        text_of(found(Spliced(layout=Layout.whole(small)))),
        text_of(clip()),
        text_of(found(Spliced(layout=Layout.whole(large))), status=Status(local)),
    ):
        assert "checksum" not in parse(text)


def test_what_is_cached_costs_nothing() -> None:
    assert parse(text_of(clip(), FakePlan((), 4_000_000, 2000)))["requests"] == ["0 Class B ($0)"]


def test_a_local_source_is_free() -> None:
    status = Status(Settings(source="/videos"))
    plan = FakePlan(((GAME, 0, 5),))
    assert parse(text_of(clip(), plan, status))["requests"] == ["1 Class B (local file, free)"]


def test_many_ranges_are_cut_so_that_an_attribute_can_hold_them() -> None:
    plan = FakePlan(tuple((GAME, i * 10_000_000, 1) for i in range(50)))
    ranges = parse(text_of(clip(), plan))["range"]
    assert len(ranges) == MAX_RANGES + 1
    assert ranges[-1] == f"... and {50 - MAX_RANGES} more"


def test_a_made_file_is_explained_by_what_making_it_reads() -> None:
    reads = Layout((Extent(GAME, 0, 100),))
    reader = FakeReader()
    text = explain(found(Bytes(produce=never, version="v", reads=reads)), reader, Status(source="r2://b"))
    assert reader.asked == [reads]
    assert parse(text)["size"] == ["settled when opened"]
    unknown = parse(text_of(found(Bytes(produce=never, version=None, size=3))))
    assert unknown["requests"] == ["not known before it is made"]
    assert unknown["kind"] == ["status file, made at each open"]
    assert unknown["size"] == ["3 bytes"]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (found(Directory(entries=never), key="games/"), "stored folder"),  # type: ignore[arg-type]
        (found(Directory(entries=never)), "directory"),  # type: ignore[arg-type]
        (found(Symlink(target="../x")), "symbolic link to ../x"),
        (found(Spliced(layout=Layout.whole(GAME)), key=GAME.key), "stored file"),
    ],
)
def test_every_kind_of_path_has_a_text(what: Found, kind: str) -> None:
    rows = parse(text_of(what))
    assert rows["kind"] == [kind]
    assert rows["requests"]


def test_a_path_cannot_break_the_lines() -> None:
    text = text_of(found(Symlink(target="a\nrequests  free"), "x\ny\udcff"))
    assert "path      x\\ny\\udcff\n" in text
    assert parse(text)["requests"] == ["none"]
    text.encode("utf-8")


def test_what_was_reported_about_the_path_and_its_sources_is_told() -> None:
    status = Status(source="r2://b")
    status.report(GAME.key, "mp4: sidecar x.mp4.index.sqlite ignored: made for another file")
    status.report("games/other.mp4", "damaged")
    notes = parse(text_of(clip(), status=status))["note"]
    assert notes == ["games/x.mp4: mp4: sidecar x.mp4.index.sqlite ignored: made for another file"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("g/x.mp4", True),
        ("g/x@5s.jpg", True),
        ("g/x.mp4@5s.jpg", True),
        ("g/x.mp4@/info.json", True),
        ("g/x@", True),
        ("g/xy@5s.jpg", False),
        ("g/y.mp4", False),
        ("x@5s.jpg", False),
    ],
)
def test_a_name_that_did_not_resolve_is_told_by_the_file_it_means(path: str, told: bool) -> None:
    notes = {"g/x.mp4": ["moov is cut short"], "g/z.mp4": ["other"]}
    assert related_notes(notes, path) == (["g/x.mp4: moov is cut short"] if told else [])
