"""What `reelfs status` shows of a mount, as lines of text. Pure: from the answer of the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfs.units import human_size, visible


def status_text(told: Mapping[str, Any]) -> str:
    """The state of a mount in a dozen lines."""
    return "\n".join(f"{name:<10} {text}" for name, text in _rows(told))


def _rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    counters, gauges = told["counters"], told["gauges"]
    requests = counters["store_requests"]
    queue = told["queue"]
    rows = [
        ("mount", visible(str(told["mountpoint"]))),
        ("source", visible(told["source"])),
        ("state", _state(told)),
        ("up", f"{duration(told['uptime_seconds'])}, pid {told['pid']}, reelfs {told['version']}"),
        (
            "read",
            f"{human_size(counters['fuse_bytes_read'])} by programs, {gauges['open_files']:.0f} open files",
        ),
        ("store", f"{_counts(requests) or 'nothing asked'}, {human_size(counters['store_bytes_read'])}"),
        ("cost", f"{told['cost_usd']:.6f} USD at R2's list prices"),
        ("cache", _cache(counters, gauges)),
        (
            "workers",
            f"{_counts(counters['worker_jobs']) or 'no jobs'}, {counters['worker_restarts']:.0f} restarts",
        ),
        (
            "queue",
            f"{queue['files']} file(s), {human_size(queue['bytes'])}"
            if queue["files"]
            else "nothing is queued",
        ),
    ]
    if errors := _counts(counters["errors"]):
        rows.append(("errors", errors))
    rows += [("plugin", f"{p['name']}: {visible(p['state'])}") for p in told["plugins"] if _is_amiss(p)]
    rows += [
        ("view", f"{name}: failed {count:.0f} times") for name, count in counters["view_failures"].items()
    ]
    return rows


def _is_amiss(plugin: Mapping[str, Any]) -> bool:
    return plugin["state"] not in ("loaded", "blocked")


def _state(told: Mapping[str, Any]) -> str:
    mode = "read-write" if told["read_write"] else "read-only"
    return f"{mode}, OFFLINE: the store cannot be reached" if told["offline"] else f"{mode}, online"


def _counts(figures: Mapping[str, float]) -> str:
    """`12 get/B, 3 list/A`."""
    return ", ".join(f"{number:.0f} {visible(name)}" for name, number in figures.items() if number)


def _cache(counters: Mapping[str, Any], gauges: Mapping[str, Any]) -> str:
    held = ", ".join(f"{human_size(number)} in {tier}" for tier, number in gauges["cache_bytes"].items())
    return f"{hit_rate(counters)} hits, {held or 'nothing held'}"


def hit_rate(counters: Mapping[str, Any]) -> str:
    """The share of reads that a cache answered, `-` before the first."""
    hits, misses = sum(counters["cache_hits"].values()), sum(counters["cache_misses"].values())
    return f"{hits / (hits + misses):.0%}" if hits + misses else "-"


def duration(seconds: float) -> str:
    """The two largest units: `3d 4h`, `12m 5s`."""
    parts: list[str] = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number or (parts and len(parts) < 2):
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"
