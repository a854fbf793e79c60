"""The hooks, whole: what a plugin may offer. Synchronous, called once at start-up.

An implementation takes any subset of the arguments, by name::

    from vfs import hookimpl

    @hookimpl
    def vfs_views(settings):
        return [Clips()]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from vfs.storage.base import Store
from vfs.vectors import Descriptor, VectorIndex
from vfs.views import Place, Sidecars, SmallFiles, View

if TYPE_CHECKING:
    from vfs.config import Settings
    from vfs.plugins import Plugins
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


class Asked(Protocol):
    """One request over a mount's control socket, as a `MountCommand` gets it."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What came with it, from JSON: anything may be missing or of another kind."""

    @property
    def progress(self) -> Callable[[Any], Awaitable[None]]:
        """Tell who asked how far it is: a JSON value. Who hangs up cancels what was asked for."""

    def text(self, name: str, default: str | None = None) -> str:
        """An argument that is text. Raises ConfigError where it is missing or something else."""


@dataclass(frozen=True, slots=True)
class MountCommand:
    """A command that mounts answer (`vfs.ask_mount`, or any client of the control socket).

    name: `PLUGIN.VERB`; one that exists already counts. run: gives the result, a JSON value, or raises a
    ReelfsError; it runs in the daemon's event loop, and must not hold that up.
    """

    name: str
    run: Callable[[Asked], Awaitable[Any]]


class Indexer(Protocol):
    """What `reelfs index` does for one kind of file, in processes of its own, a few files at a time."""

    name: str
    #: Whether what is made is kept by `Place.keep`, and so needs a cache folder.
    needs_cache: bool

    def wants(self, key: str) -> bool:
        """By the name of the file."""

    async def index(self, place: Place, sidecars: Sidecars | None) -> tuple[str, str]:
        """(state, reason) of one stored file; must cost little where all is done.

        sidecars: where what is made is stored beside the file; None = it is kept on this machine.
        States: `made`, `there`, `none needed`, `none fits`, `unplayable`, all of them final until the file
        changes; `failed` is tried again. Raises StoreError and the like where it could not be asked.
        """

    async def finish(self, there: Callable[[str], bool], count: int) -> str:
        """After a whole listing: drop what is of files that are gone; a line to show, or "".

        there: whether a key was listed. count: how many were, of all indexers.
        """


@hookspec
def vfs_indexers(settings: Settings, plugins: Plugins) -> Iterable[Indexer]:  # type: ignore[empty-body]
    """What `reelfs index` makes, in the order in which it is made."""


@hookspec
def vfs_descriptors(settings: Settings) -> Iterable[Descriptor]:  # type: ignore[empty-body]
    """Further descriptors of pictures for `search/`, used where `[plugin.search] descriptors` names them."""


@hookspec
def vfs_vector_index(settings: Settings) -> VectorIndex | None:
    """An index of vectors to be asked in place of a scan, or None; the first one counts."""


@hookspec
def vfs_views(  # type: ignore[empty-body]
    settings: Settings, status: Status, plugins: Plugins, files: SmallFiles | None
) -> Iterable[View]:
    """The views of this plugin; called once, when the tree is built.

    files: where it may keep small files in the source; None where the mount cannot be written to.
    """


@hookspec(firstresult=True)
def vfs_store(url: str, settings: Settings) -> Store | None:
    """The store for a URL of a scheme this plugin knows, else None; the first answer wins."""


@hookspec
def vfs_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Commands to add to the command line."""


@hookspec
def vfs_control(  # type: ignore[empty-body]
    settings: Settings, status: Status, root: Place
) -> Iterable[MountCommand]:
    """Commands for the control socket of the mount; called once, when it opens. root: of what is mounted."""


@hookspec
def vfs_prepare_worker() -> Iterable[Callable[[], None]]:  # type: ignore[empty-body]
    """Functions that make a worker ready (import a decoder, say): called in one once the mount answers."""
