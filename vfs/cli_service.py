"""`reelfs service ...`: mounts that systemd starts."""

from __future__ import annotations

from typing import Annotated

import typer

from vfs.arguments import SettingOptions
from vfs.terminal import print_line

service = typer.Typer(
    name="service",
    help="Mounts that systemd starts at boot.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

User = Annotated[bool, typer.Option("--user", help="A service of this user, not of the machine.")]
Root = Annotated[
    str, typer.Option("--root", metavar="DIR", help="Write below DIR (a file system that is being built).")
]


@service.command()
def install(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the service: reelfs@NAME.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What `reelfs mount` takes.")],
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="Made where it is missing.")],
    user: User = False,
    root: Root = "/",
    replace: Annotated[bool, typer.Option("--replace", help="Write over one of that name.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Mount now, too.")] = True,
    options: SettingOptions = None,
) -> None:
    """Write settings and unit of a mount, enable it, and start it."""
    from pathlib import Path

    from vfs import serviceunits
    from vfs.config import Settings

    settings = Settings.load({"source": source, "mountpoint": mountpoint}, options=options or (), environ={})
    base = Path(root).absolute()
    layout = serviceunits.Layout.of_user(base) if user else serviceunits.Layout.of_system(base)
    done = serviceunits.install(name, settings, layout, replace=replace, start=start)
    for path in done.files:
        print_line(f"wrote {path}")
    for command in done.todo:
        print_line(f"to do: {command}")


@service.command()
def show(user: User = False) -> None:
    """Print the unit file, as it would be written."""
    from pathlib import Path

    from vfs import serviceunits

    layout = serviceunits.Layout.of_user(Path("/")) if user else serviceunits.Layout.of_system(Path("/"))
    print_line(serviceunits.unit_text(layout).rstrip("\n"))
