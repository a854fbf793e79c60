"""The command line: what moves single files and databases, with no mount (`put`, `get`, `presign`, `db`)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vfs.errors import ReelfsError
from vfs.terminal import EXIT_CONFLICT, in_trio, print_line, progress_bar

Text = str | None
Replace = Annotated[bool, typer.Option("--replace", help="Store over what is there now.")]


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (put, get, presign, db):
        app.command()(command)


def put(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to send.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="s3://BUCKET/KEY, r2://BUCKET/KEY or a path.")
    ],
    replace: Replace = False,
) -> None:
    """Send a file to a store, with no mount; what broke off goes on where it was."""
    from pathlib import Path

    from vfs import transfer

    path, remote = Path(file), transfer.remote_of(target)
    state = transfer.state_folder(os.environ)
    with progress_bar(path.name, path.stat().st_size if path.is_file() else 0) as progress:
        in_trio(lambda: transfer.put(path, remote, replace=replace, progress=progress, state=state))


def get(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="s3://BUCKET/KEY, r2://BUCKET/KEY or a path.")
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")],
    replace: Replace = False,
) -> None:
    """Fetch an object from a store, with no mount; what broke off goes on where it was."""
    from pathlib import Path

    from vfs import transfer

    remote = transfer.remote_of(source)
    with progress_bar(remote.key, None) as progress:
        in_trio(lambda: transfer.get(remote, Path(file), replace=replace, progress=progress))


def presign(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="s3://BUCKET/KEY or r2://BUCKET/KEY.")],
    put: Annotated[bool, typer.Option("--put", help="A URL to store the object by, not to read it.")] = False,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it is valid, a week at most.")
    ] = "1h",
) -> None:
    """Print a URL that reads (or stores) one object without credentials, for whoever has it."""
    from vfs import transfer
    from vfs.units import parse_seconds

    remote, seconds = transfer.remote_of(target), parse_seconds(expires)

    async def ask() -> str | None:
        async with transfer.opened(remote, writable=put) as store:
            return store.presign(remote.key, expires=int(seconds), put=put)

    url = in_trio(ask)
    if url is None:
        raise ReelfsError(f"{target}: a folder has no URLs")
    print_line(url)


def db(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, s3://BUCKET/PREFIX or r2://BUCKET/PREFIX.")
    ],
    user: Annotated[Text, typer.Argument(metavar="[USER]", help="The folder of the database there.")] = None,
    command: Annotated[
        list[str] | None, typer.Option("--command", metavar="SQL", help="Run this instead of a shell.")
    ] = None,
    init: Annotated[bool, typer.Option("--init", help="Create the tables of the application.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a session that was cut off.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Drop a session that was cut off.")] = False,
    name: Annotated[
        str, typer.Option("--name", metavar="FILE", help="The name of the database.")
    ] = "database.sqlite",
) -> None:
    """Fetch a stored SQLite database, open it, and put it back when you are done."""
    from vfs import dbfolder, dbsession

    ended = dbsession.run(
        dbsession.remote_of(source, user, name),
        commands=command,
        init=init,
        resume=resume,
        discard=discard,
        state=dbfolder.state_folder(os.environ),
    )
    if ended.kept:
        _tell(f"{ended.key} was changed by another client meanwhile: both are kept, yours as {ended.kept}")
        raise typer.Exit(EXIT_CONFLICT)
    _tell(f"{ended.key}: put back, version {ended.version}" if ended.changed else f"{ended.key}: not changed")


def _tell(text: str) -> None:
    """What became of it; stdout is for what was asked for."""
    print(f"reelfs: {text}", file=sys.stderr)
