"""Commands that talk to the daemon of a mount: `reelfs status`, `refresh`, `warm`, `flush`, ..."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vfs.arguments import ConfigOption, JsonOption
from vfs.terminal import print_json, print_line, progress_bar

if TYPE_CHECKING:
    from vfs.controlclient import Client

Where = Annotated[
    str | None, typer.Argument(metavar="[PATH]", help="A path on a mount; without one, the only mount.")
]
Path = Annotated[str, typer.Argument(metavar="PATH", help="A path on a mount.")]
Anywhere = Annotated[str, typer.Argument(metavar="PATH|SOURCE", help="A path on a mount, or a source.")]
Second = Annotated[
    str | None, typer.Argument(metavar="[PATH]", help="A path in SOURCE, which need not be mounted.")
]


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (status, top, watch, refresh, forget, warm, flush, queue, undelete):
        app.command()(command)
    app.command("log-level")(log_level)


def mountpoint_of(given: str | None, config: str | None) -> str:
    """The mountpoint that was given, else that of a configuration file. Raises ConfigError."""
    from vfs.config import Settings
    from vfs.errors import ConfigError

    named = given or (Settings.load(config=config).mountpoint if config else None)
    if named is None:
        raise ConfigError("MOUNTPOINT is missing")
    return str(named)


def _client(path: str | None) -> tuple[Client, str]:
    """The daemon of the mount a path lies on, and the path below its root. Raises ReelfsError."""
    from vfs.controlclient import Client, the_mount

    mounted, below = the_mount(path)
    return Client(mounted), below


def top(
    where: Where = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks.")] = 2.0,
    count: Annotated[int, typer.Option(metavar="N", help="Looks; 0 = until Ctrl-C.")] = 0,
) -> None:
    """Show who reads what, how fast, and what it costs; again and again on a terminal, else once."""
    from vfs.topview import top_text

    client, _ = _client(where)
    with client:
        _watch(lambda: client.ask("status"), top_text, interval, count)


def _watch(look: Callable[[], Any], text: Callable[..., str], interval: float, count: int) -> None:
    """On a terminal a screen that is drawn again, elsewhere one text after another."""
    import itertools
    import sys
    import time

    before, live = None, sys.stdout.isatty()
    looks = itertools.count(1) if live and not count else range(1, max(1, count) + 1)
    if not live:
        for number in looks:
            now = look()
            print_line(text(before, now))
            before = now
            if number < max(1, count):
                time.sleep(interval)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, screen=not count, auto_refresh=False) as screen:
        for number in looks:
            now = look()
            screen.update(Text(text(before, now, console.width)), refresh=True)
            before = now
            if number != count:
                time.sleep(interval)


def status(where: Where = None, as_json: JsonOption = False) -> None:
    """Show what a mount does and what it has cost."""
    client, _ = _client(where)
    with client:
        told = client.ask("status")
    if as_json:
        print_json(told)
        return
    from vfs.statusview import status_text

    print_line(status_text(told))


def refresh(where: Where = None) -> None:
    """Ask the store again for what is at or below PATH; nothing is unmounted."""
    client, path = _client(where)
    with client:
        client.ask("refresh", {"path": path})


def watch(where: Where = None) -> None:
    """Print what changes at or below PATH as JSON lines, until Ctrl-C."""
    import json

    client, path = _client(where)
    with client:
        client.ask(
            "watch", {"path": path}, progress=lambda change: print_line(json.dumps(change)), seconds=None
        )


def forget(where: Where = None, as_json: JsonOption = False) -> None:
    """Drop what the caches hold of PATH, in memory and on disk."""
    from vfs.units import human_size

    client, path = _client(where)
    with client:
        told = client.ask("forget", {"path": path}, seconds=None)
    if as_json:
        print_json(told)
    else:
        print_line(f"{human_size(told['bytes'])} dropped")


def warm(path: Path, as_json: JsonOption = False) -> None:
    """Fetch PATH (a file, a folder, or a range as x.mp4@60s-90s) into the cache, ahead of its readers."""
    from vfs.units import human_size

    client, below = _client(path)
    with client, progress_bar(below, None) as advance:
        told = client.ask("warm", {"path": below}, progress=_Bar(advance), seconds=None)
    if as_json:
        print_json(told)
    else:
        print_line(f"{human_size(told['bytes'])} of {told['files']} file(s)")


class _Bar:
    """What a daemon says of its progress, on a progress bar."""

    def __init__(self, advance: Callable[..., object]) -> None:
        self._advance = advance
        self._done = 0

    def __call__(self, told: Any) -> None:
        done = int(told["bytes"])
        self._advance(done - self._done, total=int(told["total"]))
        self._done = done


def flush(where: Where = None, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Wait until everything written to a mount is in the store. With --config, to what that file mounts."""
    from vfs.errors import ReelfsError

    client, path = _client(mountpoint_of(where, config) if config else where)
    with client, progress_bar("flush", None) as advance:
        told = client.ask("flush", {"path": path}, progress=_Bar(advance), seconds=None)
    if as_json:
        print_json(told)
    elif not told["files"]:
        print_line("nothing is queued")
    if told["files"]:
        raise ReelfsError(f"{told['files']} file(s) are still queued: `reelfs queue` shows them")


def say_what_was_found(mountpoint: str) -> None:
    """Say what a mount that was just made found of an earlier one."""
    client, _ = _client(mountpoint)
    with client:
        found = client.ask("status")["found"]
    if found:
        print_line(found)


def leave(mountpoint: str, *, lazy: bool, now: bool) -> None:
    """Unmount. What was written is sent before, unless `now`; what is left is told. Raises ReelfsError."""
    from vfs.errors import ReelfsError
    from vfs.mounts import ended, mount_at, unmount

    told, left = None, None
    mounted = mount_at(mountpoint)
    if mounted is not None and mounted.ours and not mounted.read_only:
        # A dead mount, or one of another user, is unmounted all the same.
        with contextlib.suppress(ReelfsError, OSError):
            client, _ = _client(mountpoint)
            with client:
                told = client.ask("status")
                if now:
                    left = client.ask("leave")
                elif told["queue"]["files"]:
                    with progress_bar("sending what was written", None) as advance:
                        left = client.ask("flush", {"path": ""}, progress=_Bar(advance), seconds=None)
    unmount(mountpoint, lazy=lazy)
    if told is None or lazy:
        return
    ended(told["pid"])
    if left is not None and left["files"]:
        print_line(
            f"{left['files']} file(s) are not sent yet: they are in the journal, the next mount sends them"
        )
        if not now:
            raise typer.Exit(1)


def undelete(first: Anywhere, path: Second = None) -> None:
    """Bring back what was deleted at or below PATH, as it was; a file of that name must not be there."""
    from vfs.mounts import mount_of
    from vfs.units import visible

    if path is None or mount_of(first) is not None:
        client, below = _client(first)
        with client:
            keys = client.ask("undelete", {"path": below}, seconds=None)["paths"]
    else:
        keys = _undeleted(first, path)
    for key in keys:
        print_line(visible(key))


def _undeleted(source: str, path: str) -> list[str]:
    """Without a mount."""
    import trio

    from vfs.transfer import Remote, opened
    from vfs.write import trash

    async def work() -> list[str]:
        async with opened(Remote(source, path), writable=True) as store:
            return await trash.undelete(store, path)

    return trio.run(work)


def queue(where: Where = None, as_json: JsonOption = False) -> None:
    """Show what was written to a mount and is not in the store yet."""
    from vfs.units import human_size, visible

    client, path = _client(where)
    with client:
        told = client.ask("queue", {"path": path})
    if as_json:
        print_json(told)
        return
    if not told["files"]:
        print_line("nothing is queued")
    for entry in told["entries"]:
        state = "sending" if entry["sending"] else "failed" if entry["error"] else "waits"
        size, age = human_size(entry["bytes"]), f"{entry['age']:.0f} s"
        why = f"  ({visible(entry['error'])})" if entry["error"] else ""
        print_line(f"{state:<8} {entry['what']:<7} {size:>10} {age:>7}  {visible(entry['path'])}{why}")


def log_level(
    level: Annotated[
        str | None, typer.Argument(metavar="[LEVEL]", help="debug, info, warning or error.")
    ] = None,
    mountpoint: Annotated[
        str | None, typer.Option("--mount", metavar="PATH", help="Which mount; default: the only one.")
    ] = None,
) -> None:
    """Show or set how much a mount logs, from now on."""
    client, _ = _client(mountpoint)
    with client:
        print_line(client.ask("log-level", {"level": level} if level else {})["level"])
