"""The hooks, whole: what a plugin may offer. Synchronous, called once at start-up.

An implementation takes any subset of the arguments, by name::

    from vfs import hookimpl

    @hookimpl
    def vfs_views(settings):
        return [Clips()]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from vfs.storage.base import Store
from vfs.views import View

if TYPE_CHECKING:
    from vfs.config import Settings
    from vfs.telemetry import Status

#: The project name under which hooks and entry points are found.
GROUP = "vfs"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, slots=True)
class Command:
    """A command-line command `reelfs NAME`.

    run: a function that typer turns into the command, or a `typer.Typer` with commands of its own.
    """

    name: str
    run: Callable[..., Any]


@hookspec
def vfs_views(settings: Settings, status: Status) -> Iterable[View]:  # type: ignore[empty-body]
    """The views of this plugin; called once, when the tree is built."""


@hookspec(firstresult=True)
def vfs_store(url: str, settings: Settings) -> Store | None:
    """The store for a URL of a scheme this plugin knows, else None; the first answer wins."""


@hookspec
def vfs_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Commands to add to the command line."""


@hookspec
def vfs_prepare_worker() -> Iterable[Callable[[], None]]:  # type: ignore[empty-body]
    """Functions that make a worker ready (import a decoder, say): called in one once the mount answers."""
