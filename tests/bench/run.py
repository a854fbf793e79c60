#!/usr/bin/env python3
"""Run benchmarks: `python tests/bench/run.py [NAME ...]`.

Requests and bytes are counted at the store and are exact. Times are only compared within one run: every
reader meets the same server, proxy and machine, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # `tests.bench`, not the files in it by their bare names

from tests.bench import (  # noqa: E402
    clips,
    containers,
    frames,
    gets,
    listing,
    loop,
    pictures,
    resources,
    search_speed,
    sequential,
    tables,
    unlisted,
    uploads,
    writing,
)
from tests.bench.game import folder  # noqa: E402
from tests.bench.report import markdown  # noqa: E402
from tests.bench.result import Row  # noqa: E402

BENCHES: Mapping[str, Callable[[], list[Row]]] = {
    "frame-fragmented": frames.frame_fragmented,
    "frame-progressive": frames.frame_progressive,
    "frame-vs-rclone": frames.frame_vs_rclone,
    "fragments-unlisted": unlisted.fragments_unlisted,
    "pictures": pictures.frame_pictures,
    "clips": clips.clips,
    "sequential": sequential.sequential,
    "listing": listing.listing,
    "index": tables.index,
    "daemon": resources.daemon,
    "containers": containers.containers,
    "search": search_speed.search,
    "request-loop": loop.request_loop,
    "store-get": gets.store_get,
    "store-put": uploads.store_put,
    "mount-put": uploads.mount_put,
    "writing": writing.writing,
}


def main() -> int:
    """Exit status: 0 when every target is met, 1 when one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES) + " (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", action="store_true", help="write docs/benchmarks.md")
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    found = {name: _run(name) for name in given.names or BENCHES}
    if given.json:
        found_rows = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        given.json.write_text(json.dumps(found_rows, indent=1) + "\n")
    if given.markdown:
        docs = {name: ((BENCHES[name].__doc__ or "").strip(), rows) for name, rows in found.items()}
        (ROOT / "docs" / "benchmarks.md").write_text(markdown(docs, machine()))
    missed = [row for rows in found.values() for row in rows if row.met is False]
    return 1 if missed else 0


def machine() -> str:
    """What it ran on, in words."""
    cores = len(os.sched_getaffinity(0))
    python = platform.python_version()
    return f"{cores} CPU cores, Linux {platform.release().split('-')[0]}, Python {python}"


def _run(name: str) -> list[Row]:
    console = Console() if sys.stdout.isatty() else Console(width=110)
    began = time.monotonic()
    folder()
    rows = BENCHES[name]()
    table = Table(title=f"{name} ({time.monotonic() - began:.0f} s)", title_justify="left")
    table.add_column("figure", ratio=1)
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for row in rows:
        mark = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, row.text, row.target, mark)
    console.print(table)
    return rows


if __name__ == "__main__":
    sys.exit(main())
