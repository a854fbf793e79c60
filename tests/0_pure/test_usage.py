"""The day's meter, its limits, and who reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from vfs.errors import OverBudget
from vfs.pytest_plugin import ExpectedLogs
from vfs.readers import MAX_PROGRAMS, OTHER, ProbeHandle, Readers
from vfs.spans import Layout, StoredObject
from vfs.telemetry import Status
from vfs.usage import Usage

MIDNIGHT = 86400.0 * 20000


def test_a_day_is_counted_and_ends_at_midnight() -> None:
    now = [MIDNIGHT - 10]
    usage = Usage(clock=lambda: now[0])
    for operation in ("get", "head", "list", "put", "complete_upload", "delete", "abort_upload"):
        usage.request(operation)
    usage.read(1000)
    assert usage.today == {"class_a": 3, "class_b": 2, "egress": 1000}
    now[0] = MIDNIGHT + 1
    assert usage.today == {"class_a": 0, "class_b": 0, "egress": 0}


def test_a_limit_refuses_with_its_name_until_it_is_raised(expected_logs: ExpectedLogs) -> None:
    usage = Usage({"class_b": 2, "egress": 0})
    usage.request("get")
    usage.request("head")
    expected_logs("limits.class_b_per_day")
    for _ in range(3):  # logged once
        with pytest.raises(OverBudget, match="class_b_per_day: 2 are used up"):
            usage.request("get")
    usage.request("list")
    assert usage.reached == {"class_b": 1}
    assert usage.today["class_b"] == 2
    usage.limits = {"class_b": 3}
    assert usage.reached == {"class_b": 0}
    usage.request("get")


def test_bytes_have_a_limit_that_heads_do_not_meet(expected_logs: ExpectedLogs) -> None:
    usage = Usage({"egress": 100})
    usage.request("get")
    usage.read(150)
    usage.request("head")
    expected_logs("egress_per_day")
    with pytest.raises(OverBudget):
        usage.request("get")


def test_the_day_survives_a_restart_and_a_broken_file_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    first = Usage(file=file, clock=lambda: MIDNIGHT)
    first.request("get")
    first.read(5)
    first.save()
    assert Usage(file=file, clock=lambda: MIDNIGHT + 100).today == {"class_a": 0, "class_b": 1, "egress": 5}
    assert Usage(file=file, clock=lambda: MIDNIGHT + 90000).today["class_b"] == 0
    for text in ("{", "[]", json.dumps({"day": "2024-10-04", "class_b": "many", "egress": -3})):
        file.write_text(text)
        assert Usage(file=file, clock=lambda: MIDNIGHT).today["class_b"] == 0


def test_crawlers_are_known_by_name_and_everyone_is_counted() -> None:
    names = {1: "tumblerd", 2: "ffmpegthumbnail", 3: "mpv", 4: "Plex Media Scan"}
    readers = Readers(
        ("tumblerd", "ffmpegthumbnailer", "plex media scan*"), names=names.__getitem__, clock=lambda: 5.0
    )
    assert [readers.opened(pid, "a.mp4").crawler for pid in names] == [True, True, False, True]
    readers.read(3, 1000)
    readers.read(99, 1)
    assert readers.by_program == {"mpv": 1000}
    assert readers.crawled == {"tumblerd": 1, "ffmpegthumbnail": 1, "Plex Media Scan": 1}
    assert readers.busy()[1]["program"] == "mpv"


def test_any_number_of_programs_is_bounded() -> None:
    readers = Readers(names=lambda pid: f"program{pid}")
    for pid in range(1000):
        readers.opened(pid, "a")
        readers.read(pid, 1)
    assert len(readers.by_program) == MAX_PROGRAMS + 1
    assert sum(readers.by_program.values()) == 1000
    assert readers.by_program[OTHER] == 1000 - MAX_PROGRAMS
    assert len(readers.busy()) <= 256


def test_a_process_number_that_is_another_program_later() -> None:
    now, name = [0.0], ["mpv"]
    readers = Readers(("tumblerd",), names=lambda pid: name[0], clock=lambda: now[0])
    assert not readers.opened(7, "a").crawler
    now[0], name[0] = 61.0, "tumblerd"
    assert readers.opened(7, "a").crawler


def test_a_crawler_reads_what_is_cached_and_its_budget() -> None:
    cached = {0}
    refused: list[int] = []

    class Reader:
        async def read(self, layout: Layout, offset: int, length: int, /) -> bytes:
            cached.add(offset)
            return bytes(length)

        def plan(self, layout: Layout, offset: int, length: int, /) -> SimpleNamespace:
            return SimpleNamespace(fetched_bytes=0 if offset in cached else length)

    async def main() -> None:
        layout = Layout.whole(StoredObject("a", 1 << 20, "v", 0))
        handle = ProbeHandle(Reader(), layout, 100, lambda: refused.append(1))
        await handle.read(0, 1000)
        await handle.read(5000, 60)
        with pytest.raises(OverBudget, match=r"crawlers\.budget"):
            await handle.read(6000, 60)
        await handle.read(5000, 60)
        await handle.read(7000, 40)

    trio.run(main)
    assert refused == [1]


def test_metrics_are_open_metrics_where_they_are_asked_for() -> None:
    from prometheus_client import parser
    from prometheus_client.openmetrics import parser as open_parser

    families: Any = parser.text_string_to_metric_families
    open_families: Any = open_parser.text_string_to_metric_families

    status, usage = Status(source="s3://b"), Usage({"class_b": 1})
    status.watch_usage(usage)
    status.watch_readers(Readers())
    usage.request("get")
    status.observe("fuse_seconds", 0.02, "read")
    kind, body = status.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    found = {family.name: family for family in open_families(body.decode())}
    assert found["reelfs_limit_reached"].samples[0].value == 1
    assert found["reelfs_today_cost_usd"].samples[0].value == pytest.approx(0.36e-6)
    kind, body = status.exposition("text/plain")
    assert kind.startswith("text/plain")
    assert found.keys() == {family.name for family in families(body.decode())}
