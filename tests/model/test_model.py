"""A mount that is written to against a model of it, another client at work beside it.

Small alphabets, so that everything meets everything. After each step listings, lookups, sizes and contents
are those of the model; whenever all is sent the store has just what the model says, conflicts included;
whatever is stored in between is a content that somebody closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model.engine import Engine, HeldStore, quick
from tests.model.reference import Node, Reference
from vfs.errors import ReelfsError, Unavailable
from vfs.storage import upload
from vfs.write.attributes import Attributes
from vfs.write.pending import Entry

FOLDERS = ("", "d/", "d/e/", "f/")
NAMES = ("a", "b", "c.txt", "é")
OTHER_SPELLING = "e\N{COMBINING ACUTE ACCENT}"
OFFSETS = (0, 3, 20, 50)
SIZES = (0, 2, 10, 60)
ASIDE = (" (conflict ", " (recovered ")

folders = st.sampled_from(FOLDERS)
names = st.sampled_from(NAMES)
picks = st.integers(0, 5)


class Mounted(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        base = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.root = Path(tempfile.mkdtemp(prefix="reelfs-model-", dir=base))
        self.store = HeldStore()
        self.store.landed = self.landed
        self.mounts = 0
        self.engine = self.mount()
        self.model = Reference()
        self.handles: list[tuple[Entry, Node]] = []
        self.legal: set[bytes] = {b""}
        self.illegal: list[tuple[str, bytes]] = []
        self.theirs: dict[str, bytes | None] = {}
        self.touched: set[str] = set()
        self.undone: set[bytes] = set()  # stored, and then removed or written over by the other client
        self.is_fuzzy = False

    def mount(self, folder: Path | None = None) -> Engine:
        self.mounts += 1
        return Engine(folder or self.root / str(self.mounts), self.store, single=30, small=24)

    def landed(self, key: str, body: bytes | None) -> None:
        if body is not None and body not in self.legal:
            self.illegal.append((key, body))

    def token(self) -> bytes:
        self.count += 1
        return f"<{self.count:05d}>".encode()

    # -- what there is ----------------------------------------------------------------------------------

    def bodies(self) -> dict[str, bytes]:
        return self.store.bodies()

    def targets(self) -> dict[str, str]:
        told = {key: Attributes.of(self.store.metadata_of(key)).target for key in self.bodies()}
        return {key: target for key, target in told.items() if target is not None}

    def tree(self) -> dict[str, bytes | str | None]:
        return self.model.tree(self.bodies(), self.targets())

    def files(self) -> list[str]:
        return sorted(key for key, what in self.tree().items() if what is not None)

    def split(self, key: str) -> tuple[str, str]:
        cut = key.removesuffix("/").rfind("/") + 1
        return key[:cut], key[cut:].removesuffix("/")

    def has(self, folder: str) -> bool:
        return not folder or folder in self.tree()

    def seen(self, key: str) -> None:
        """Something is decided here about what is under a key: what another stored before that is known."""
        if key not in self.model.overlay:
            self.theirs.pop(key, None)

    def node(self, key: str) -> Node | None:
        return self.model.node(key, self.bodies(), self.targets())

    # -- files ------------------------------------------------------------------------------------------

    @rule(folder=folders, name=names)
    def create(self, folder: str, name: str) -> None:
        key = folder + name
        if not self.has(folder) or self.is_fuzzy:
            return
        if key in self.tree() or f"{key}/" in self.tree():
            with pytest.raises(ReelfsError):
                self.engine.create(folder, name)
            return
        self.seen(key)
        entry = self.engine.create(folder, name)
        node = Node(b"", dirty=True, handles=1, is_written=True)
        self.model.overlay[key] = node
        self.handles.append((entry, node))

    @rule(folder=folders)
    def create_another_spelling(self, folder: str) -> None:
        if self.has(folder) and folder + "é" in self.tree() and not self.is_fuzzy:
            with pytest.raises(ReelfsError, match="spell"):
                self.engine.create(folder, OTHER_SPELLING)

    @rule(pick=picks, truncate=st.booleans())
    def open(self, pick: int, truncate: bool) -> None:
        known = [key for key, what in self.tree().items() if isinstance(what, bytes)]
        if not known or self.is_fuzzy:
            return
        key = known[pick % len(known)]
        self.seen(key)
        entry = self.engine.open(*self.split(key), truncate=truncate)
        node = next((n for e, n in self.handles if e is entry), None) or self.node(key)
        if (
            key in self.model.opened
            and self.model.opened[key] is node
            and node not in [n for _, n in self.handles]
        ):
            node = Node(self.bodies()[key])
        assert node is not None
        node.handles += 1
        self.handles.append((entry, node))
        if key not in self.model.overlay:
            self.model.opened[key] = node
        if truncate:
            node.body, node.dirty = b"", True
            self.changed(entry, node)

    def changed(self, entry: Entry, node: Node) -> None:
        node.is_written = True
        if entry.key:
            self.model.overlay[entry.key] = node
            self.model.opened.pop(entry.key, None)

    @precondition(lambda self: self.handles)
    @rule(pick=picks, offset=st.sampled_from(OFFSETS), append=st.booleans(), long=st.booleans())
    def write(self, pick: int, offset: int, append: bool, long: bool) -> None:
        entry, node = self.handles[pick % len(self.handles)]
        data = self.token() * (5 if long else 1)
        offset = len(node.body) if append else offset
        if not self.can_change(entry, node):
            return
        self.engine.write(entry, offset, data)
        body = node.body.ljust(offset, b"\0")
        node.body, node.dirty = body[:offset] + data + body[offset + len(data) :], True
        self.changed(entry, node)

    def can_change(self, entry: Entry, node: Node) -> bool:
        """False where what it was opened on is gone by now: what was not fetched of it cannot be known."""
        return not self.is_fuzzy

    @precondition(lambda self: self.handles)
    @rule(pick=picks, size=st.sampled_from(SIZES))
    def truncate(self, pick: int, size: int) -> None:
        entry, node = self.handles[pick % len(self.handles)]
        if not self.can_change(entry, node):
            return
        self.engine.truncate(entry, size)
        node.body, node.dirty = node.body[:size].ljust(size, b"\0"), True
        self.changed(entry, node)

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def flush(self, pick: int) -> None:
        entry, node = self.handles[pick % len(self.handles)]
        self.engine.flush(entry)
        node.closed, node.dirty = node.body, False

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        entry, node = self.handles.pop(pick % len(self.handles))
        self.close_one(entry, node)

    def close_one(self, entry: Entry, node: Node) -> None:
        node.handles -= 1
        self.legal.add(node.body)
        node.closed, node.dirty = node.body, False
        self.engine.close_file(entry)
        if not node.handles:
            self.model.opened = {k: n for k, n in self.model.opened.items() if n is not node}

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def read(self, pick: int) -> None:
        entry, node = self.handles[pick % len(self.handles)]
        if not self.is_fuzzy:
            assert self.engine.read(entry) == node.body

    @rule(pick=picks)
    def unlink(self, pick: int) -> None:
        known = self.files()
        if not known or self.is_fuzzy:
            return
        key = known[pick % len(known)]
        self.is_fuzzy = key in self.touched
        self.seen(key)
        self.engine.unlink(*self.split(key))
        self.model.remove(key, self.split(key)[0], self.bodies())

    @rule(pick=picks, folder=folders, name=names, exchange=st.booleans())
    def rename(self, pick: int, folder: str, name: str, exchange: bool) -> None:
        known = self.files()
        new = folder + name
        if not known or not self.has(folder) or f"{new}/" in self.tree() or self.is_fuzzy:
            return
        old = known[pick % len(known)]
        exchange = exchange and new in self.tree()
        if old == new:
            return
        if exchange and not all(isinstance(self.tree()[key], bytes) for key in (old, new)):
            return
        self.is_fuzzy = bool({old, new} & self.touched)
        self.seen(old)
        self.seen(new)
        node, other = self.node(old), self.node(new)
        self.engine.rename(*self.split(old), folder, name, exchange=exchange)
        assert node is not None
        self.legal |= {node.body} if not node.handles else set()
        if exchange:
            assert other is not None
            self.model.overlay[old], self.model.overlay[new] = other, node
            self.model.opened.pop(old, None)
            self.model.opened.pop(new, None)
            return
        self.model.move(old, new, node)
        self.model.keep(self.split(old)[0], self.bodies())

    @rule(pick=picks, mode=st.sampled_from((0o600, 0o755)))
    def chmod(self, pick: int, mode: int) -> None:
        known = self.files()
        if not known or self.is_fuzzy:
            return
        key = known[pick % len(known)]
        self.seen(key)
        node = self.node(key)
        assert node is not None
        self.engine.chmod(*self.split(key), mode)
        node.mode = mode
        self.model.overlay[key] = node
        self.model.opened.pop(key, None)

    @rule(folder=folders, name=names)
    def symlink(self, folder: str, name: str) -> None:
        key = folder + name
        if not self.has(folder) or key in self.tree() or f"{key}/" in self.tree() or self.is_fuzzy:
            return
        self.seen(key)
        target = self.token().decode()
        self.engine.call(self.engine.drive.symlink, folder, name, target, Attributes())
        self.model.overlay[key] = Node(target=target)

    # -- folders ----------------------------------------------------------------------------------------

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def mkdir(self, folder: str) -> None:
        above, name = self.split(folder)
        if self.has(above) and not self.has(folder) and folder[:-1] not in self.tree() and not self.is_fuzzy:
            self.engine.call(self.engine.drive.mkdir, above, name, Attributes())
            self.model.overlay[folder] = Node()

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def rmdir(self, folder: str) -> None:
        if not self.has(folder) or self.is_fuzzy:
            return
        above, name = self.split(folder)
        if any(key.startswith(folder) and key != folder for key in self.tree()):
            with pytest.raises(ReelfsError):
                self.engine.call(self.engine.drive.rmdir, above, name)
            return
        self.engine.call(self.engine.drive.rmdir, above, name)
        self.model.remove(folder, above, self.bodies())

    @rule(old=st.sampled_from(FOLDERS[1:]), new=st.sampled_from(("g/", "d/", "d/e/", "f/", "f/h/")))
    def rename_folder(self, old: str, new: str) -> None:
        above, name = self.split(new)
        if self.is_fuzzy or not self.has(old) or not self.has(above) or new.startswith(old):
            return
        if new[:-1] in self.tree() or any(k.startswith(new) and k != new for k in self.tree()):
            return
        if self.store.held:
            return
        below = list(self.model.below(old, self.bodies()))
        for key in below:
            self.seen(key)
        self.engine.rename(*self.split(old), above, name)
        nodes = {key: self.node(key) for key in below}
        for key, node in nodes.items():
            assert node is not None
            self.legal |= {node.body} if not node.handles else set()
            self.model.move(key, new + key[len(old) :], node)
        self.model.overlay[old], self.model.overlay[new] = None, Node()
        self.model.keep(self.split(old)[0], self.bodies())

    # -- sending ----------------------------------------------------------------------------------------

    @rule(when=st.sampled_from(("before", "after")))
    def begin_to_send(self, when: str) -> None:
        if self.store.held:
            return
        self.engine.hold(when)
        self.hurry()

    def hurry(self) -> None:
        self.is_fuzzy = self.is_fuzzy or bool(self.touched)
        self.engine.hurry()

    @precondition(lambda self: self.store.held)
    @rule()
    def let_go(self) -> None:
        self.engine.release()
        self.send()

    @rule(
        operation=st.sampled_from(("put", "copy", "delete", "head", "put_part", "complete_upload", "list")),
        times=st.integers(1, 4),
    )
    def store_fails(self, operation: str, times: int) -> None:
        self.store.fault(operation, times=times, error=Unavailable("on purpose"))
        self.hurry()
        self.store.heal()

    @rule()
    def send(self) -> None:
        if self.store.held:
            return
        self.store.heal()
        for _ in range(20):
            left = self.engine.settle()
            if not left:
                break
        if left:  # what is open and has no name, or another one, may still be read
            assert self.handles, left
            self.is_fuzzy = True
            return
        self.check_sent()

    def check_sent(self) -> None:
        stored, targets = self.bodies(), self.targets()
        aside = {k: body for k, body in stored.items() if any(mark in k for mark in ASIDE)}
        for key, node in self.model.overlay.items():
            if key in self.touched or key.endswith("/"):
                if node is not None and node.is_written and not node.handles:
                    places = {stored.get(key), *aside.values(), *self.undone}
                    assert node.body in places, f"{key}: {node.body!r} is lost"
                continue
            if node is None:
                assert key not in stored, f"{key} is there still"
            elif node.target is not None:
                assert targets.get(key) == node.target
            elif not node.handles:
                assert stored.get(key) == node.body, (key, stored.get(key), node.body)
                if node.mode is not None:
                    assert Attributes.of(self.store.metadata_of(key)).mode == node.mode
        for key, body in self.theirs.items():
            if body is not None:
                assert stored.get(key) == body, f"{key} of another client was written over"
        self.model.forget()
        before, self.touched = self.touched, set()
        self.theirs.clear()
        self.is_fuzzy = False
        self.model.overlay = {}
        for entry, node in self.handles:
            if entry.key and self.engine.drive.pending.active(entry.key) is entry:
                self.model.overlay[entry.key] = node
                self.touched |= before & {entry.key}  # it is a conflict once it is closed
        assert not any(self.store.waiting for _ in (1,))
        if not self.handles:
            wanted = {d.number for d in self.engine.drive.drafts.values()}
            assert self.engine.staged() <= wanted, "staged files that nobody knows"
            assert not self.store._uploads, "uploads nobody will end"

    # -- another client, and the end of a mount ---------------------------------------------------------

    @rule(folder=st.sampled_from(("", "d/", "z/")), name=names)
    def another_stores(self, folder: str, name: str) -> None:
        key = folder + name
        body = b"theirs " + self.token()
        if f"{key}/" in self.tree() or (folder and folder[:-1] in self.tree()) or self.is_needed(key):
            return
        self.touch(key, body)
        self.store.replace(key, body)
        self.store._metadata.pop(key, None)

    @rule(pick=picks)
    def another_removes(self, pick: int) -> None:
        known = sorted(key for key in self.bodies() if not key.endswith("/"))
        if known:
            key = known[pick % len(known)]
            if not self.is_needed(key):
                self.touch(key, None)
                self.store.remove(key)

    def is_needed(self, key: str) -> bool:
        """Whether bytes of a file that is open, or was written to, are still to be read from there."""
        needs = {one.key for entry, _ in self.handles for one in (entry.origin, *entry.needs()) if one}
        for entry in self.engine.drive.pending:
            needs |= {one.key for one in entry.needs() if entry.draft is not None or entry.live is not None}
        return key in needs

    def touch(self, key: str, body: bytes | None) -> None:
        if body is not None:
            self.legal.add(body)
        self.theirs[key] = body
        self.undone.add(self.bodies().get(key, b""))
        if key in self.model.overlay or key in self.model.opened or self.store.held:
            self.is_fuzzy = True
        # What was moved from there may be lost with it.
        self.is_fuzzy = self.is_fuzzy or bool(self.model.overlay)
        if self.is_fuzzy:
            self.touched |= {key, *self.model.overlay}

    @rule()
    def crash(self) -> None:
        """The process is killed, and another begins with what it left."""
        if self.is_fuzzy:
            return
        self.mounts += 1
        target = self.root / str(self.mounts)
        self.engine.killed(target)
        shutil.rmtree(self.engine.folder)
        self.after(target)

    @rule()
    def restart(self) -> None:
        """The mount ends without waiting for what is to be sent."""
        if self.store.held or self.is_fuzzy:
            return
        self.engine.close()
        self.after(self.engine.folder, ended=True)

    def after(self, folder: Path, *, ended: bool = False) -> None:
        cut = {key: node for key, node in self.model.overlay.items() if node is not None and node.handles}
        self.handles.clear()
        self.model.opened.clear()
        self.engine = self.mount(folder)
        tree = self.engine.tree()
        for key, node in cut.items():
            kept = [b for k, b in tree.items() if " (recovered " in k and k.startswith(key.partition(".")[0])]
            if not node.dirty:
                assert tree.get(key) == node.body, (key, node.body)
                node.handles = 0
                self.legal.add(node.body)
                continue
            if ended and node.body:
                assert node.body in kept, f"{key}: what was being written is gone"
            if node.closed is not None:
                assert kept or tree.get(key) == node.closed
            del self.model.overlay[key]
            self.touched.add(key)
            self.legal |= {body for body in kept if isinstance(body, bytes)}
            self.is_fuzzy = True
        for value in tree.values():
            if isinstance(value, bytes) and self.is_fuzzy:
                self.legal.add(value)

    @invariant()
    def nothing_torn(self) -> None:
        assert self.illegal == []

    @invariant()
    def shows_the_model(self) -> None:
        if not self.is_fuzzy:
            self.compare()

    def compare(self) -> None:
        shown, wanted = self.engine.tree().items(), self.tree().items()
        assert shown == wanted, f"shown: {dict(shown - wanted)}, wanted: {dict(wanted - shown)}"

    def teardown(self) -> None:
        try:
            while self.handles:
                self.close_one(*self.handles.pop())
            self.engine.release()
            self.send()
            self.compare()
        finally:
            self.engine.close()
            shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.getLogger("vfs.write").setLevel(logging.CRITICAL + 1)
    monkeypatch.setattr(upload, "part_size", lambda size: 16)
    with quick():
        yield
    logging.getLogger("vfs.write").setLevel(logging.NOTSET)


def run(examples: int, steps: int, **told: Any) -> None:
    with contextlib.suppress(FileNotFoundError):
        run_state_machine_as_test(
            Mounted,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
                **told,
            ),
        )


def test_a_mount_against_its_model() -> None:
    """10,000 steps, the same ones each time."""
    run(200, 50, derandomize=True, database=None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_mount_against_its_model_for_long() -> None:
    """Others each time; what fails is kept by hypothesis, and told as a blob."""
    run(2000, 60)
