"""One mounted source, put together: store, guard, caches, reader, views, tree. With or without a kernel.

FUSE, the command line without a mount and the tests all enter here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from vfs import workers
from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.cache.derived import Derived
from vfs.cache.disk import DiskCache
from vfs.cache.kept import Kept
from vfs.cache.listing import Stored
from vfs.cache.metadata import Metadata
from vfs.changes import Changes
from vfs.config import KNOWN, Settings
from vfs.control import Control
from vfs.errors import ConfigError, DeadlineExceeded, ReelfsError, Unavailable
from vfs.explain import explain
from vfs.found import Found
from vfs.hookspecs import MountCommand
from vfs.operate import Operations
from vfs.places import Services, StoredPlace
from vfs.plugins import Plugins, load_plugins
from vfs.reader import Reader, open_reader
from vfs.readers import Readers
from vfs.spans import StoredObject
from vfs.storage.base import Store, prefix_of
from vfs.storage.guard import GuardedStore
from vfs.telemetry import Status
from vfs.tree import Tree
from vfs.units import visible
from vfs.usage import Usage, usage_file
from vfs.write.merged import MergedMetadata
from vfs.write.rules import Rules
from vfs.write.session import WriteSession, merged_metadata, open_writing, staging_folder
from vfs.write.small import StoredFiles

log = logging.getLogger("vfs.runtime")

#: A presigned URL lives this long (seconds): enough to hand it to a player, too short to leave lying about.
PRESIGNED_SECONDS = 3600
#: The first request of a mount gets this long at most: who starts it waits for it.
START_SECONDS = 6.0
#: Settings that a running mount takes up at SIGHUP.
LIVE = frozenset(
    {
        *("log_level", "attr_ttl", "dir_ttl", "negative_ttl", "crawlers.programs"),
        *("limits.class_a_per_day", "limits.class_b_per_day", "limits.egress_per_day"),
    }
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A source that can be read: what every adapter needs."""

    settings: Settings
    store: GuardedStore
    budget: Budget
    reader: Reader
    tree: Tree
    status: Status
    plugins: Plugins
    control: Control
    changes: Changes
    metadata: Metadata
    readers: Readers
    writing: WriteSession | None = None

    async def reload(self) -> None:
        """Read the configuration file and the credentials again; what a mount cannot change is named in the
        log. Raises ConfigError and Denied: then nothing was changed.
        """
        now: Settings = self.status.settings or self.settings
        new = now.reloaded()
        await self.store.renew()
        changed = [key for key in KNOWN if new.value(key) != now.value(key)]
        later = [key for key in changed if key not in LIVE]
        self.apply(new)
        told = ", ".join(key for key in changed if key in LIVE) or "no setting"
        log.info("read again: credentials; %s changed", told)
        if later:
            log.warning("these change with the next mount: %s", ", ".join(later))

    def apply(self, settings: Settings) -> None:
        """Have the settings of `LIVE` in effect."""
        self.status.settings = settings
        self.metadata.keep_for(
            dir_ttl=settings.dir_ttl, attr_ttl=settings.attr_ttl, negative_ttl=settings.negative_ttl
        )
        self.store.usage.limits = settings.limits.by_name()
        self.readers.patterns = settings.crawlers.programs
        logging.getLogger().setLevel(settings.log_level.upper())

    async def follow(self) -> None:
        """Take up changes that the queue of `events.queue` tells of, until cancelled."""
        from vfs.events import TOKEN, Queue, follow
        from vfs.storage.credentials import environment

        def token() -> str:
            with suppress(ConfigError):  # a file that is being changed; SIGHUP says what is wrong with it
                return environment(self.settings.credentials).get(TOKEN, "")
            return ""

        if url := self.settings.events.queue:
            await follow(Queue(url, token), self.store.url, self.changes)

    async def warm(self) -> None:
        """Start a worker and make it ready for what plugins will run there: the first frame is quick."""
        for function in self.plugins.preparations():
            try:
                await workers.in_worker(function)
            except ReelfsError as error:
                log.warning("no worker could be started ahead: %s", error)


def rules_of(settings: Settings, store: GuardedStore) -> Rules:
    """What may be written where."""
    return Rules(
        allow=settings.write.allow or ("",),
        protect=settings.write.protect,
        max_deletes=settings.write.max_deletes_per_minute,
        remote=store.remote,
        prefix=prefix_of(store.url),
        clock=trio.current_time,
    )


def _writing(
    settings: Settings, store: GuardedStore, metadata: Metadata, reader: Reader, rules: Rules
) -> AbstractAsyncContextManager[WriteSession]:
    """Writing, as the settings have it."""
    return open_writing(
        staging_folder(settings.write_dir, store.url),
        store,
        metadata,
        reader,
        rules,
        delay=settings.write.delay,
        trash_seconds=settings.write.trash_ttl,
        deadline=settings.deadline,
        fsync_to_store=settings.write.fsync == "store",
        limit=settings.write.staging,
        floor=settings.write.free_floor,
        flush_seconds=settings.write.flush_timeout,
        databases=settings.write.databases,
    )


def _add_commands(control: Control, commands: Iterable[MountCommand]) -> None:
    """Those of plugins; none takes the place of another."""
    for command in commands:
        if command.name in control.commands:
            log.error("a plugin offers the command %s, which exists already", visible(command.name))
        else:
            control.command(command.name, command.run)


def _tell_noticed(changes: Changes, key: str, now: Stored | None) -> None:
    """What others changed and no event told of: found by looking again."""
    told: dict[str, Any] = {
        "action": "removed" if now is None else "stored",
        "path": key,
        "size": None,
        "etag": "",
        "time": "",
    }
    if isinstance(now, StoredObject):
        told |= {"size": now.size, "etag": now.version}
    changes.tell(told | {"source": "look"})


def _kept(settings: Settings, store: Store) -> Kept:
    """Indexes live in the cache folder; without one they are made again by the next mount."""
    folder = settings.cache_dir / "kept" if settings.cache_dir is not None else None
    return Kept(folder, store.url)


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    store: Store | None = None,
    extra_plugins: Iterable[tuple[str, object]] = (),
    writes: bool | None = None,
) -> AsyncIterator[Runtime]:
    """Open the source of `settings`; everything it started has ended when the block is left.

    store: used instead of the one the URL names (tests, embedding). writes: whether the store takes writes,
    with no journal of what it has not yet; None = as the settings say, with one, which is for one process
    alone. Raises ConfigError, Denied, NotFound.
    """
    journal = settings.writes and writes is None
    plugins = load_plugins(settings.plugins.block, extra_plugins)
    async with AsyncExitStack() as stack:
        guarded = GuardedStore(
            store or plugins.store(settings.source, settings),
            deadline=settings.deadline,
            writable=settings.writes if writes is None else writes,
        )
        stack.push_async_callback(guarded.aclose)
        budget = Budget(settings.memory)
        disk = None
        if guarded.remote and settings.cache_dir is not None and settings.cache_size:
            disk = await stack.enter_async_context(DiskCache.open(settings.cache_dir, settings.cache_size))
        blocks = BlockCache(guarded, budget, disk)
        reader = await stack.enter_async_context(
            open_reader(
                blocks,
                gap=settings.coalesce_gap,
                read_ahead_max=settings.read_ahead,
                connections=settings.connections,
            )
        )
        status = Status(settings, plugins=plugins, store=guarded, blocks=blocks, budget=budget)
        metadata = (merged_metadata if journal else Metadata)(
            guarded,
            dir_ttl=settings.dir_ttl,
            attr_ttl=settings.attr_ttl,
            negative_ttl=settings.negative_ttl,
            immutable=settings.immutable,
        )
        stack.callback(metadata.close)
        guarded.confirmed = metadata.confirm
        # Asked at once: wrong credentials or a missing bucket are told at start, and the root is listed.
        try:
            with guarded.hurried(START_SECONDS):
                await metadata.folder("")
        except DeadlineExceeded as error:
            raise Unavailable(
                f"{settings.source} cannot be reached: check the network and the endpoint ({error})"
            ) from None
        workers.configure(
            processes=settings.workers.processes,
            memory=settings.workers.memory,
            deadline=settings.workers.deadline,
            kept=settings.workers.kept,
            isolate=settings.workers.isolate,
        )
        await stack.enter_async_context(workers.open_workers())
        writing, files = None, None
        if isinstance(metadata, MergedMetadata):
            rules = rules_of(settings, guarded)
            writing = await stack.enter_async_context(_writing(settings, guarded, metadata, reader, rules))
            files = StoredFiles(guarded, metadata, rules)
            writing.uploader.watch(status.watch)
            status.add_file("queue.json", writing.queue_json)
            status.add_file("conflicts", writing.conflicts_text)
        status.watch("worker_jobs", lambda: dict(workers.jobs))
        status.watch("worker_restarts", lambda: workers.jobs["died"] + workers.jobs["overran"])

        guarded.usage = Usage(settings.limits.by_name(), usage_file(settings.cache_dir, guarded.url))
        stack.callback(guarded.usage.save)
        status.watch_usage(guarded.usage)
        readers = Readers(settings.crawlers.programs)
        status.watch_readers(readers)
        control = Control()

        async def socket_path(found: Found) -> str:
            return str(control.path)

        async def explained(found: Found) -> str:
            return explain(found, reader, status)

        async def presigned(found: Found) -> str:
            sign = partial(guarded.presign, found.attributes["key"], expires=PRESIGNED_SECONDS)
            return await trio.to_thread.run_sync(sign) or ""  # credentials may have to be renewed for it

        def is_stored(found: Found) -> bool:
            return guarded.remote and found.place is not None and not found.place.is_folder

        services = Services(metadata, reader, Derived(budget), status, _kept(settings, guarded))
        tree = Tree(
            services,
            plugins.views(settings, status, files),
            expand=settings.expand,
            show_derived=settings.show_derived,
            exposed={
                "explain": (lambda found: True, explained),
                "presigned_url": (is_stored, presigned),
                "control": (lambda found: not found.path and control.path is not None, socket_path),
            },
        )
        if writing is not None:
            writing.drive.rules.reserved = tree.reserved
        changes = Changes(metadata.forget_at)
        metadata.noticed = partial(_tell_noticed, changes)
        Operations(settings, control, tree, reader, blocks, status, changes, writing, readers).add()
        _add_commands(control, plugins.mount_commands(settings, status, StoredPlace.root(services)))
        yield Runtime(
            settings,
            guarded,
            budget,
            reader,
            tree,
            status,
            plugins,
            control,
            changes,
            metadata,
            readers,
            writing,
        )
