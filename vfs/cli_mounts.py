"""Commands that talk to the daemon of a mount: `reelfs status`, `refresh`, `warm`, `flush`, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vfs.terminal import print_json, print_line, progress_bar

if TYPE_CHECKING:
    from vfs.controlclient import Client

Where = Annotated[
    str | None, typer.Argument(metavar="[PATH]", help="A path on a mount; without one, the only mount.")
]
Path = Annotated[str, typer.Argument(metavar="PATH", help="A path on a mount.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (status, refresh, forget, warm, flush, queue):
        app.command()(command)
    app.command("log-level")(log_level)


def _client(path: str | None) -> tuple[Client, str]:
    """The daemon of the mount a path lies on, and the path below its root. Raises ReelfsError."""
    from vfs.controlclient import Client, the_mount

    mounted, below = the_mount(path)
    return Client(mounted), below


def status(where: Where = None, as_json: Json = False) -> None:
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


def forget(where: Where = None, as_json: Json = False) -> None:
    """Drop what the caches hold of PATH, in memory and on disk."""
    from vfs.units import human_size

    client, path = _client(where)
    with client:
        told = client.ask("forget", {"path": path}, seconds=None)
    if as_json:
        print_json(told)
    else:
        print_line(f"{human_size(told['bytes'])} dropped")


def warm(path: Path, as_json: Json = False) -> None:
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


def flush(where: Where = None, as_json: Json = False) -> None:
    """Wait until everything written to a mount is in the store."""
    from vfs.errors import ReelfsError

    client, path = _client(where)
    with client, progress_bar("flush", None) as advance:
        told = client.ask("flush", {"path": path}, progress=_Bar(advance), seconds=None)
    if as_json:
        print_json(told)
    elif not told["files"]:
        print_line("nothing is queued")
    if told["files"]:
        raise ReelfsError(f"{told['files']} file(s) are still queued: `reelfs queue` shows them")


def queue(where: Where = None, as_json: Json = False) -> None:
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
