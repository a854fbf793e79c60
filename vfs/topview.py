"""What `reelfs top` shows: who reads what, how fast, what the caches save, what the day has cost.

Pure: two answers of the daemon, one later than the other, become a text of a given width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfs.statusview import duration, hit_rate
from vfs.units import human_size, visible

#: Programs shown.
MOST = 15


def top_text(before: Mapping[str, Any] | None, now: Mapping[str, Any], width: int = 100) -> str:
    """The screen. before: an earlier answer, None = rates are not known yet."""
    seconds = now["uptime_seconds"] - before["uptime_seconds"] if before else 0.0
    lines = [*_head(before, now, seconds), "", *_programs(before, now, seconds)]
    return "\n".join(line[:width].rstrip() for line in lines)


def _head(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float) -> list[str]:
    counters, gauges = now["counters"], now["gauges"]
    today, queue = gauges["today"], now["queue"]
    gets = sum(n for name, n in counters["store_requests"].items() if name.startswith("get/"))
    gets_before = 0
    if before is not None:
        then = before["counters"]["store_requests"]
        gets_before = sum(n for name, n in then.items() if name.startswith("get/"))
    state = "OFFLINE" if now["offline"] else "online"
    stopped = [name for name, reached in gauges["limit_reached"].items() if reached]
    jobs = counters["worker_jobs"]
    busy = ", ".join(f"{n:.0f} {name}" for name, n in jobs.items()) or "no jobs"
    return [
        f"reelfs {visible(str(now['mountpoint']))}  {visible(now['source'])}  {state}  "
        f"up {duration(now['uptime_seconds'])}",
        f"read   {_rate(before, now, 'fuse_bytes_read', seconds)} by programs, "
        f"{_rate(before, now, 'store_bytes_read', seconds)} from the store, "
        f"{gauges['open_files']:.0f} open files",
        f"cache  {hit_rate(counters)} hits; GETs {gets:.0f}"
        + (f" (+{gets - gets_before:.0f})" if before else ""),
        f"today  {gauges['today_cost_usd']:.6f} USD: {today.get('class_b', 0):.0f} class B, "
        f"{today.get('class_a', 0):.0f} class A, {human_size(today.get('egress', 0))}"
        + (f"  LIMIT REACHED: {', '.join(stopped)}" if stopped else ""),
        f"queue  {queue['files']} files, {human_size(queue['bytes'])}, "
        f"oldest {queue['oldest_seconds']:.0f} s; "
        f"workers {busy}, {counters['worker_restarts']:.0f} restarts",
    ]


def _rate(before: Mapping[str, Any] | None, now: Mapping[str, Any], counter: str, seconds: float) -> str:
    total = now["counters"][counter]
    if before is None or seconds <= 0:
        return human_size(total)
    return f"{(total - before['counters'][counter]) / seconds / 1e6:.1f} MB/s"


def _programs(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float) -> list[str]:
    then = {p["pid"]: p for p in before["readers"]} if before else {}
    lines = [f"{'PID':>8} {'PROGRAM':<16} {'MB/s':>7} {'READ':>10} {'IDLE':>6}  FILE"]
    for reader in now["readers"][:MOST]:
        earlier = then.get(reader["pid"], {"bytes": 0})["bytes"] if before else reader["bytes"]
        rate = (reader["bytes"] - earlier) / seconds / 1e6 if seconds > 0 else 0.0
        name = visible(reader["program"]) + ("*" if reader["crawler"] else "")
        lines.append(
            f"{reader['pid']:>8} {name:<16.16} {rate:>7.1f} {human_size(reader['bytes']):>10} "
            f"{reader['idle_seconds']:>5.0f}s  {visible(reader['path'])}"
        )
    if not now["readers"]:
        lines.append("         nobody read anything within the last minute")
    return lines
