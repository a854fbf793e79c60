"""`reelfs index`: makes the indexes that a library lacks, in several processes.

The source is listed by pages into a journal; what has no outcome there is given to processes, a few files at
a time each, and their outcomes are written down as they come. Nothing in memory grows with the library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any

import trio
import typer

from vfs.arguments import ConfigOption, SettingOptions
from vfs.config import Settings
from vfs.errors import ConfigError
from vfs.hookspecs import Indexer
from vfs.indexjournal import Journal, path_of
from vfs.indexshow import Show, showing
from vfs.indexwork import AT_ONCE
from vfs.plugins import load_plugins
from vfs.runtime import open_runtime
from vfs.terminal import in_trio
from vfs.units import parse_seconds

#: `key`, `state` and `reason` of one file.
Outcome = Mapping[str, str]
#: Outcomes that are final until the file changes.
FINAL = ("made", "there", "none needed", "none fits", "unplayable")
#: How much the processes yield to others: an index is in nobody's way.
NICE = 10
#: Seconds a process is given to end by itself.
_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for. beside: indexes are stored beside the files, else they are kept on this machine."""

    settings: Settings
    indexers: tuple[Indexer, ...]
    beside: bool
    patterns: tuple[str, ...]
    processes: int
    again: bool
    nice: int = NICE

    def wants(self, key: str) -> bool:
        """A file for one of the indexers that one of the patterns fits."""
        named = not self.patterns or any(fnmatchcase(key, pattern) for pattern in self.patterns)
        return named and any(indexer.wants(key) for indexer in self.indexers)

    @property
    def names(self) -> list[str]:
        """Of the indexers."""
        return [indexer.name for indexer in self.indexers]


def index(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, s3://BUCKET/PREFIX or r2://...")],
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Keys to look at, as 'games/*.mp4'.")
    ] = None,
    write_sidecars: Annotated[
        bool, typer.Option("--write-sidecars", help="Store what is made beside each file.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Make only this: frames, search.")
    ] = None,
    watch: Annotated[
        str | None, typer.Option("--watch", metavar="TIME", help="Go on, and list again after this long.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, metavar="N", help="Processes.")] = 2,
    again: Annotated[bool, typer.Option("--again", help="Look at what is done already, too.")] = False,
    nice: Annotated[
        int, typer.Option("--nice", min=0, max=19, metavar="N", help="How far to yield to other programs.")
    ] = NICE,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """Make the indexes that files of SOURCE lack: frames are found at once, and `search/` finds pictures."""
    settings = Settings.load({"source": source}, options=options or (), config=config)
    indexers = _chosen(settings, only or ())
    job = _job(settings, indexers, tuple(patterns or ()), write_sidecars, jobs, again)
    job = replace(job, nice=nice)
    pause = None if watch is None else parse_seconds(watch)
    good = in_trio(partial(_watch, job, pause))
    raise typer.Exit(0 if good else 1)


def _chosen(settings: Settings, only: Iterable[str]) -> tuple[Indexer, ...]:
    """The indexers of those names, all where none is named. Raises ConfigError."""
    known = {indexer.name: indexer for indexer in load_plugins(settings.plugins.block).indexers(settings)}
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: there is {' and '.join(known) or 'no plugin that indexes'}")
    return tuple(known[name] for name in (only or known))


async def _watch(job: Job, pause: float | None) -> bool:
    """Once, or again and again."""
    while True:
        good = await run(job, showing())
        if pause is None:
            return good
        await trio.sleep(pause)
        job = replace(job, again=False)


def _job(
    settings: Settings,
    indexers: tuple[Indexer, ...],
    patterns: tuple[str, ...],
    write: bool,
    processes: int,
    again: bool,
) -> Job:
    """Where indexes are put. Raises ConfigError."""
    if not write and settings.cache_dir is None:
        indexers = tuple(indexer for indexer in indexers if not indexer.needs_cache)
    if not indexers:
        raise ConfigError(
            "there is no cache folder to keep indexes in: give --write-sidecars, or -o cache_dir=DIR here "
            "and to `reelfs mount`"
        )
    # Blocks are not kept on disk: a mount may hold the lock of that cache, and each is read once.
    # Each process works on a file with one worker: what runs at a time is what was asked for.
    worker = settings.workers.model_copy(update={"processes": 1})
    settings = settings.model_copy(update={"cache_size": 0, "workers": worker})
    return Job(settings, indexers, write, patterns, processes, again)


async def run(job: Job, show: Show, environ: Mapping[str, str] = os.environ) -> bool:
    """Index a source; False where a file could not be asked for or its index not be put anywhere."""
    begun = time.monotonic()
    where = "\0".join(("beside" if job.beside else str(job.settings.cache_dir), *job.names))
    async with open_runtime(job.settings, writes=False) as runtime:
        journal = Journal(path_of(runtime.store.url, where, environ))
        try:
            await _list(runtime.store.list, job, journal, show)
            with show.running(journal.waiting()):
                failed = await _work(job, journal, show)
            show.summary(journal.outcomes(), failed, time.monotonic() - begun)
            for indexer in job.indexers if not job.patterns else ():
                if told := await indexer.finish(journal.knows, journal.count()):
                    show.note(f"{indexer.name}: {told}")
        finally:
            journal.close()
    return not failed


async def _list(list_page: Callable[..., Any], job: Job, journal: Journal, show: Show) -> None:
    """All videos of the source into the journal, page by page."""
    token, count = None, 0
    while True:
        page = await list_page("", delimiter="", token=token)
        videos = [stored for stored in page.objects if job.wants(stored.key)]
        journal.seen(videos, again=job.again)
        count += len(videos)
        show.listed(count)
        if (token := page.token) is None:
            if not job.patterns:
                journal.forget()
            return


async def _work(job: Job, journal: Journal, show: Show) -> int:
    """Have all that is unfinished looked at; how many files failed."""
    failed = 0

    def take(found: Outcome) -> None:
        nonlocal failed
        if found["state"] in FINAL:
            journal.done(found["key"], found["state"], found["reason"])
        else:
            failed += 1
        show.file(found["state"], found["key"], found["reason"])

    keys = journal.unfinished()
    async with trio.open_nursery() as nursery:
        for _ in range(min(job.processes, -(-journal.waiting() // AT_ONCE))):
            nursery.start_soon(_process, job, keys, take)
    return failed


async def _process(job: Job, keys: Iterator[str], take: Callable[[Outcome], None]) -> None:
    """One process: as many files at a time as it works on; what it leaves behind has failed."""
    command = [sys.executable, "-m", "vfs.indexwork"]
    # Numerics by one thread: there are as many processes as were asked for.
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    # A session of its own: Ctrl-C is for this command alone, which then ends its processes.
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environ
    )
    pending: set[str] = set()
    try:
        with suppress(trio.BrokenResourceError):
            await _share(process, job, keys, pending, take)
        for key in sorted(pending):
            take({"key": key, "state": "failed", "reason": "its process ended"})
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _share(
    process: trio.Process, job: Job, keys: Iterator[str], pending: set[str], take: Callable[[Outcome], None]
) -> None:
    """Hand out keys and take outcomes until there are no more of either, or the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    how = {"indexers": job.names, "beside": job.beside, "nice": job.nice}
    await _tell(process.stdin, {"settings": job.settings.to_dict(), **how})
    await _feed(process.stdin, keys, pending)
    rest = b""
    while pending and (piece := await process.stdout.receive_some()):
        *lines, rest = (rest + piece).split(b"\n")
        for found in map(json.loads, lines):
            pending.discard(found["key"])
            take(found)
        await _feed(process.stdin, keys, pending)


async def _feed(stdin: trio.abc.SendStream, keys: Iterator[str], pending: set[str]) -> None:
    """Hand out keys until the process has its share."""
    while len(pending) < AT_ONCE and (key := next(keys, None)) is not None:
        pending.add(key)
        await _tell(stdin, key)


async def _tell(stdin: trio.abc.SendStream, value: object) -> None:
    await stdin.send_all(json.dumps(value).encode() + b"\n")


async def _end(process: trio.Process) -> None:
    """It ends when its input does; what does not is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.aclose()
    await process.stdout.aclose()
    with trio.move_on_after(_GRACE):
        await process.wait()
        return
    process.kill()
    await process.wait()
