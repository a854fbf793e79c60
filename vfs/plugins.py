"""Find, block, order and report plugins. What reelfs ships itself comes the same way as anyone's."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from vfs import hookspecs
from vfs.errors import ConfigError
from vfs.storage.base import Store
from vfs.vectors import Descriptor, VectorIndex
from vfs.views import Place, SmallFiles, View

if TYPE_CHECKING:
    from vfs.config import Settings
    from vfs.telemetry import Status

log = logging.getLogger("vfs.plugins")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What is known of one plugin; state is `loaded`, `blocked`, or why it could not be loaded."""

    name: str
    distribution: str
    version: str
    module: str
    state: str


class BuiltinStores:
    """The stores reelfs brings, on the same hook as anyone's; asked last."""

    @hookspecs.hookimpl(trylast=True)
    def vfs_store(self, url: str, settings: Settings) -> Store | None:
        """memory://, file://, a plain path, s3:// and r2://."""
        from vfs.storage.credentials import environment
        from vfs.storage.open import open_store

        return open_store(
            url,
            deadline=settings.deadline,
            max_connections=settings.connections,
            environ=environment(settings.credentials),
        )


class Plugins:
    """The registered plugins and what became of each."""

    def __init__(self, manager: pluggy.PluginManager, infos: tuple[PluginInfo, ...]) -> None:
        self.manager = manager
        self.infos = infos

    def views(self, settings: Settings, status: Status, files: SmallFiles | None = None) -> list[View]:
        """All views, in the order of the plugins' names; a plugin whose hook raises is left out and named.

        files: see `hookspecs.vfs_views`.
        """
        given = {"settings": settings, "status": status, "plugins": self, "files": files}
        views: list[View] = []
        for hook in sorted(
            self.manager.hook.vfs_views.get_hookimpls(),
            key=lambda impl: (not impl.tryfirst, impl.trylast, impl.plugin_name),
        ):
            views += self._call(hook, lambda v: list(v), **given) or []
        return views

    def commands(self) -> list[hookspecs.Command]:
        """All commands plugins add."""
        commands: list[hookspecs.Command] = []
        for hook in self.manager.hook.vfs_commands.get_hookimpls():
            commands += self._call(hook, lambda c: list(c)) or []
        return commands

    def mount_commands(self, settings: Settings, status: Status, root: Place) -> list[hookspecs.MountCommand]:
        """What plugins add to the control socket."""
        commands: list[hookspecs.MountCommand] = []
        for hook in self.manager.hook.vfs_control.get_hookimpls():
            commands += self._call(hook, lambda c: list(c), settings=settings, status=status, root=root)
        return commands

    def preparations(self) -> list[Callable[[], None]]:
        """What makes a worker ready for what plugins run there."""
        functions: list[Callable[[], None]] = []
        for hook in self.manager.hook.vfs_prepare_worker.get_hookimpls():
            functions += self._call(hook, lambda f: list(f)) or []
        return functions

    def indexers(self, settings: Settings) -> list[hookspecs.Indexer]:
        """What `reelfs index` makes."""
        found: list[hookspecs.Indexer] = []
        for hook in sorted(self.manager.hook.vfs_indexers.get_hookimpls(), key=lambda impl: impl.plugin_name):
            found += self._call(hook, lambda i: list(i), settings=settings, plugins=self) or []
        return found

    def descriptors(self, settings: Settings) -> dict[str, Descriptor]:
        """Further descriptors of pictures, by name; the first of a name counts."""
        found: dict[str, Descriptor] = {}
        for hook in self.manager.hook.vfs_descriptors.get_hookimpls():
            for one in self._call(hook, lambda d: list(d), settings=settings) or []:
                found.setdefault(one.name, one)
        return found

    def vector_indexes(self, settings: Settings) -> list[VectorIndex]:
        """Indexes of vectors, the one that counts first."""
        found: list[VectorIndex] = []
        for hook in self.manager.hook.vfs_vector_index.get_hookimpls():
            found += self._call(hook, lambda one: [one] if one else [], settings=settings)
        return found

    def store(self, url: str, settings: Settings) -> Store:
        """The store for a URL. Raises ConfigError when no plugin knows its scheme."""
        store: Store | None = self.manager.hook.vfs_store(url=url, settings=settings)
        if store is None:
            raise ConfigError(f"no plugin knows how to open {url!r}: use a path, s3://BUCKET or r2://BUCKET")
        return store

    def _call(self, hook: Any, collect: Callable[[Iterable[Any]], list[Any]], **arguments: Any) -> list[Any]:
        """One plugin's results; its failure is its own. Raises ConfigError: the settings are the user's."""
        try:
            return collect(hook.function(**{name: arguments[name] for name in hook.argnames}) or ())
        except ConfigError:
            raise
        except Exception:
            log.exception("plugin %s failed in a hook and is left out", hook.plugin_name)
            self.infos = tuple(
                PluginInfo(i.name, i.distribution, i.version, i.module, "failed in a hook: see the log")
                if i.name == hook.plugin_name
                else i
                for i in self.infos
            )
            return []


def load_plugins(blocked: Collection[str] = (), extra: Iterable[tuple[str, object]] = ()) -> Plugins:
    """Load every plugin of the entry-point group `vfs` that is not blocked.

    extra: (name, plugin object) pairs registered as well (tests). A plugin that fails to import is
    reported and left out; a hook name that does not exist is an error of that plugin (ConfigError).
    """
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(BuiltinStores(), "stores")
    infos = []
    for point in sorted(importlib.metadata.entry_points(group=hookspecs.GROUP), key=lambda p: p.name):
        state = "blocked" if point.name in blocked else "loaded"
        if state == "loaded":
            try:
                manager.register(point.load(), point.name)
            except Exception as error:
                log.exception("plugin %s (%s) could not be loaded", point.name, point.value)
                state = f"could not be loaded: {type(error).__name__}: {error}"
        dist = point.dist
        infos.append(
            PluginInfo(
                point.name, dist.name if dist else "?", dist.version if dist else "?", point.value, state
            )
        )
    for name, plugin in extra:
        manager.register(plugin, name)
        infos.append(PluginInfo(name, "-", "-", repr(plugin), "loaded"))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ConfigError(f"plugin {getattr(error.plugin, '__name__', error.plugin)}: {error}") from error
    return Plugins(manager, tuple(infos))
