"""The screens of `reelfs top` and `status`, as text."""

from __future__ import annotations

import copy
from typing import Any

from vfs.readers import Readers
from vfs.statusview import duration, status_text
from vfs.telemetry import Status
from vfs.topview import top_text
from vfs.usage import Usage

READER = {
    "pid": 4242,
    "program": "mpv",
    "crawler": False,
    "opened": 1,
    "reads": 10,
    "bytes": 30_000_000,
    "path": "games/x@5s-9s.mp4",
    "idle_seconds": 0.4,
}


def answer() -> dict[str, Any]:
    """What a daemon answers to `status`."""
    now = [100.0]
    status = Status(source="r2://videos", version="1.0", clock=lambda: now[0])
    usage = Usage({"class_b": 1000})
    status.watch_usage(usage)
    status.watch_readers(Readers())
    asked: dict[tuple[str, ...], float] = {("get", "B"): 12, ("list", "A"): 2}
    status.watch("store_requests", lambda: asked)
    status.watch("store_bytes_read", lambda: 31_000_000)
    status.watch("cache_hits", lambda: {"memory": 30, "disk": 6})
    status.watch("cache_misses", lambda: {"disk": 12})
    status.watch("cache_bytes", lambda: {"memory": 1 << 20, "disk": 3 << 30})
    status.watch("worker_jobs", lambda: {"ok": 3})
    status.count("fuse_bytes_read", by=30_000_000)
    status.count("errors", "ENOENT", by=2)
    usage.request("get")
    now[0] = 3725.0
    told = status.snapshot()
    return {
        "mountpoint": "/srv/video",
        "pid": 17,
        "read_write": False,
        "queue": {"files": 0, "bytes": 0, "oldest_seconds": 0.0, "entries": []},
        "readers": [
            dict(READER),
            {**READER, "pid": 9, "program": "tumblerd", "crawler": True, "path": "a\nb.mp4"},
        ],
        **told,
    }


def test_top_between_two_looks() -> None:
    before, now = answer(), answer()
    now["uptime_seconds"] = before["uptime_seconds"] + 2
    now["counters"]["fuse_bytes_read"] += 10_000_000
    now["counters"]["store_requests"]["get/B"] += 3
    now["readers"][0]["bytes"] += 10_000_000
    assert top_text(before, now, 120).splitlines() == [
        "reelfs /srv/video  r2://videos  online  up 1h 0m",
        "read   5.0 MB/s by programs, 0.0 MB/s from the store, 0 open files",
        "cache  75% hits; GETs 15 (+3)",
        "today  0.000000 USD: 1 class B, 0 class A, 0 B",
        "queue  0 files, 0 B, oldest 0 s; workers 3 ok, 0 restarts",
        "",
        "     PID PROGRAM             MB/s       READ   IDLE  FILE",
        "    4242 mpv                  5.0   38.1 MiB     0s  games/x@5s-9s.mp4",
        "       9 tumblerd*            0.0   28.6 MiB     0s  a\\nb.mp4",
    ]


def test_top_at_first_and_when_it_stops() -> None:
    now = answer()
    now["readers"] = []
    now["offline"] = True
    now["gauges"]["limit_reached"]["class_b"] = 1
    lines = top_text(None, now, 60).splitlines()
    assert "OFFLINE" in lines[0]
    assert lines[1] == "read   28.6 MiB by programs, 29.6 MiB from the store, 0 open"
    assert "LIMIT REACHED" in top_text(None, now)
    assert lines[-1] == "         nobody read anything within the last minute"
    assert max(map(len, lines)) <= 60


def test_status() -> None:
    told = copy.deepcopy(answer())
    told["plugins"] = [
        {"name": "mp4", "state": "loaded"},
        {"name": "chapters", "state": "could not be loaded: ImportError: no module\nx"},
    ]
    told["counters"]["view_failures"] = {"clips": 2}
    assert status_text(told).splitlines() == [
        "mount      /srv/video",
        "source     r2://videos",
        "state      read-only, online",
        "up         1h 0m, pid 17, reelfs 1.0",
        "read       28.6 MiB by programs, 0 open files",
        "store      12 get/B, 2 list/A, 29.6 MiB",
        "cost       0.000013 USD at R2's list prices",
        "cache      75% hits, 3.0 GiB in disk, 1.0 MiB in memory",
        "workers    3 ok, 0 restarts",
        "queue      nothing is queued",
        "errors     2 ENOENT",
        "plugin     chapters: could not be loaded: ImportError: no module\\nx",
        "view       clips: failed 2 times",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (0, 59, 61, 3600, 90061)] == ["0s", "59s", "1m 1s", "1h 0m", "1d 1h"]
