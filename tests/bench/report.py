"""docs/benchmarks.md from the figures of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from tests.bench.result import Row

_HEAD = """\
# Benchmarks

Written by `python tests/bench/run.py --markdown` on {machine};
a shared machine, so times and rates are for comparing within the run. Requests and bytes are counted at the
store by a proxy and are exact; small versions of these counts are tests (`tests/6_clients/test_requests.py`).

The store is `rclone serve s3`, the line before it a proxy (40 ms round trip where a time is compared; each
section says so). The game is 3 minutes of noisy 1080p H.264 at 24 Mbit/s, 545 MB, a key frame every 2 s;
its fragmented form has one fragment of 6 MB a key frame. It is made once and kept below
`~/.cache/reelfs-bench` (`REELFS_BENCH_DIR` names another folder).

What the choice of this game hides. Its groups of pictures are alike: in one whose first group has a key frame
of twice the size of the others, a frame at a key frame cost 3.7 times its bytes, since what a frame needs is
estimated from the groups seen before. And no group is over 8 MiB: at 36 Mbit/s the last frames of a group
took two GETs side by side, not one. A mount stands for three seconds before it is timed.
"""


def markdown(found: Mapping[str, tuple[str, Sequence[Row]]], machine: str) -> str:
    """found: by benchmark, what it is about and its rows."""
    parts = [_HEAD.format(machine=machine)]
    for name, (about, rows) in found.items():
        parts.append(f"## {name}\n\n{inspect.cleandoc(about)}\n")
        lines = ["| figure | value | target | |", "|---|---:|---:|---|"]
        for row in rows:
            mark = "" if row.met is None else "met" if row.met else "**missed**"
            lines.append(f"| {row.what} | {row.text} | {row.target} | {mark} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
