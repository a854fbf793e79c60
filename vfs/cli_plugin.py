"""`reelfs plugin ...`: for authors of plugins."""

from __future__ import annotations

from typing import Annotated

import typer

from vfs.terminal import print_line

plugin = typer.Typer(
    name="plugin",
    help="For authors of plugins.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@plugin.callback()
def _group() -> None:
    """For authors of plugins."""


@plugin.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the plugin: small letters and `_`.")],
    into: Annotated[
        str, typer.Option("--into", metavar="DIR", help="Where its folder reelfs-NAME is made.")
    ] = ".",
) -> None:
    """Write a plugin that works, with its test, to start from."""
    from pathlib import Path

    from vfs import pluginskeleton

    for path in pluginskeleton.new(name, Path(into)):
        print_line(f"wrote {path}")
