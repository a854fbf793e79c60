"""Stories that are told to a process which is killed in the middle, and what there is to be afterwards."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash import child
from tests.crash.parent import ParentStore

SECONDS = 60.0
OLD, NEW, BIG, OTHER = b"old " * 10, b"new one", b"0123456789abcdef" * 6, b"another client's"
PATCHED = OLD[:3] + b"XYZ" + OLD[6:]
TWICE = PATCHED[:20] + b"!!" + PATCHED[22:]
TREE = {"d/a": b"in a", "d/e/b": b"in b", "d/c": b"in c"}
MOVED = {f"f{key[1:]}": body for key, body in TREE.items()}

Steps = list[tuple[Any, ...]]
State = dict[str, bytes]
#: What there is at first, the steps, and what there is after each (None: as before).
STORIES: dict[str, tuple[State, list[tuple[tuple[Any, ...], State | None]]]] = {
    "create": ({}, [(("store_file", "a", NEW), {"a": NEW}), (("send",), None)]),
    "create in parts": ({}, [(("store_file", "a", BIG), {"a": BIG}), (("send",), None)]),
    "fsync": ({}, [(("fsync", "a", BIG), {"a": BIG}), (("send",), None)]),
    "replace": ({"a": OLD}, [(("store_file", "a", NEW), {"a": NEW}), (("send",), None)]),
    "patch": ({"a": OLD}, [(("patch", "a", 3, b"XYZ"), {"a": PATCHED}), (("send",), None)]),
    "patch twice": (
        {"a": OLD},
        [
            (("patch", "a", 3, b"XYZ"), {"a": PATCHED}),
            (("begin",), None),
            (("patch", "a", 20, b"!!"), {"a": TWICE}),
            (("send",), None),
        ],
    ),
    "again while it is sent": (
        {},
        [
            (("store_file", "a", BIG), {"a": BIG}),
            (("begin",), None),
            (("store_file", "a", BIG[::-1]), {"a": BIG[::-1]}),
            (("begin",), None),
            (("store_file", "a", NEW), {"a": NEW}),
            (("send",), None),
        ],
    ),
    "written on": (
        {},
        [
            (("go_on", "a", BIG, 20), {"a": BIG}),
            (("go_on", "a", NEW, 3), {"a": NEW}),
            (("go_on", "a", BIG[::-1], 60), {"a": BIG[::-1]}),
            (("send",), None),
        ],
    ),
    "rename": ({"a": OLD}, [(("rename", "a", "b"), {"b": OLD}), (("send",), None)]),
    "rename what is pending": (
        {},
        [
            (("store_file", "a", BIG), {"a": BIG}),
            (("begin",), None),
            (("rename", "a", "b"), {"b": BIG}),
            (("send",), None),
        ],
    ),
    "rename what is small and pending": (
        {},
        [
            (("store_file", "a", NEW), {"a": NEW}),
            (("rename", "a", "b"), {"b": NEW}),
            (("send",), None),
        ],
    ),
    "save as editors do": (
        {"a": OLD},
        [
            (("store_file", "a.tmp", NEW), {"a": OLD, "a.tmp": NEW}),
            (("rename", "a.tmp", "a"), {"a": NEW}),
            (("send",), None),
        ],
    ),
    "save over what is pending": (
        {},
        [
            (("store_file", "a", BIG), {"a": BIG}),
            (("store_file", "a.tmp", BIG[::-1]), {"a": BIG, "a.tmp": BIG[::-1]}),
            (("rename", "a.tmp", "a"), {"a": BIG[::-1]}),
            (("begin",), None),
            (("store_file", "b", NEW), {"a": BIG[::-1], "b": NEW}),
            (("send",), None),
        ],
    ),
    "written over": (
        {},
        [
            (("go_over", "a", BIG, BIG[::-1]), {"a": BIG[::-1]}),
            (("begin",), None),
            (("go_over", "a", OLD * 2, BIG), {"a": BIG}),
            (("send",), None),
        ],
    ),
    "exchange": (
        {"a": OLD, "b": NEW},
        [(("rename", "a", "b", True), {"a": NEW, "b": OLD}), (("send",), None)],
    ),
    "rename a folder": (
        TREE,
        [
            (("store_file", "d/n", NEW), {**TREE, "d/n": NEW}),
            (("rename", "d", "f"), {**MOVED, "f/n": NEW}),
            (("send",), None),
        ],
    ),
    "delete": ({"a": OLD, "b": OLD}, [(("unlink", "a"), {"b": OLD}), (("send",), None)]),
    "delete what is sent": (
        {},
        [
            (("store_file", "a", BIG), {"a": BIG}),
            (("begin",), None),
            (("unlink", "a"), {}),
            (("send",), None),
        ],
    ),
    "folders and links": (
        {},
        [
            (("mkdir", "d"), {"d/": b""}),
            (("symlink", "d/l", "there"), {"d/": b"", "d/l": b""}),
            (("begin",), None),
            (("unlink", "d/l"), {"d/": b""}),
            (("rmdir", "d"), {}),
            (("send",), None),
        ],
    ),
    "attributes": ({"a": OLD}, [(("chmod", "a", 0o600), {"a": OLD}), (("send",), None)]),
    "conflict": (
        {"a": OLD},
        [
            (("store_file", "a", NEW), {"a": NEW}),
            (("another", "a", OTHER), {"a": OTHER, "a (conflict": NEW}),
            (("send",), None),
        ],
    ),
}


#: What was closed by one of several programs in the middle of a step: there is that, too, between two states.
BETWEEN: dict[str, dict[int, State]] = {
    "written on": {0: {"a": BIG[:20]}, 1: {"a": NEW[:3]}, 2: {"a": BIG[::-1][:60]}},
    "written over": {0: {"a": BIG}, 2: {"a": OLD * 2}},
}


def states(name: str) -> list[State]:
    """What there is to be before the first step, and after each."""
    first, steps = STORIES[name]
    found = [first]
    for _, state in steps:
        found.append(found[-1] if state is None else state)
    return found


def processes() -> Any:
    """Where the processes come from: forked from one that has everything loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.child"])
    return context


class Teller:
    """Tells a story to a new process, and looks at what is left."""

    def __init__(self, processes: Any, store: ParentStore, folder: Path) -> None:
        self.processes, self.store, self.folder = processes, store, folder
        self.kills: Counter[str] = Counter()

    def prepare(self, name: str) -> None:
        """What there is at first."""
        self.store.clear()
        for key, body in STORIES[name][0].items():
            self.store.replace(key, body)

    def begin(self, name: str) -> Path:
        """And an empty folder."""
        self.prepare(name)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def tell(
        self, folder: Path, steps: Steps, kill: int = 0, before: Callable[[int], object] | None = None
    ) -> int:
        """How it ended. before: told the process's number before it does anything."""
        self.store.done.clear()
        ours, theirs = multiprocessing.Pipe()
        process = self.processes.Process(
            target=child.main, args=(str(self.store.socket), str(folder), steps, kill, 1000.0, theirs)
        )
        process.start()
        if before is not None:
            before(process.pid)
        ours.send("begin")
        process.join(SECONDS)
        ours.close()
        theirs.close()
        assert process.exitcode is not None, "it hangs"
        return int(process.exitcode)

    def points(self, name: str) -> list[str]:
        folder = self.begin(name)
        assert self.tell(folder, [step for step, _ in STORIES[name][1]]) == 0
        self.check(name, folder, len(STORIES[name][1]))
        return list(self.store.points)

    def killed(self, name: str, at: int, again: int = 0) -> None:
        """Killed at a point, and, with `again`, once more while it recovers."""
        folder = self.begin(name)
        steps = [step for step, _ in STORIES[name][1]]
        ended = self.tell(folder, steps, at)
        done = len(self.store.done)
        if ended == 0:
            return  # it came there no more: what is sent beside each other comes in any order
        assert ended == -signal.SIGKILL
        self.kills[name] += 1
        if again and self.tell(folder, [("send",)], again) == -signal.SIGKILL:
            self.kills[name] += 1
        assert self.tell(folder, [("send",)]) == 0
        self.check(name, folder, done)

    def check(self, name: str, folder: Path, done: int, since: int | None = None) -> None:
        """That all is as after the last step that was done, the one after, or (since) an earlier one."""
        found = {
            key: body for key, body in self.store.bodies().items() if not key.startswith(".reelfs-trash/")
        }
        between = BETWEEN.get(name, {})
        legal = [
            *states(name)[done if since is None else since : done + 2],
            between.get(done, states(name)[done]),
        ]
        assert any(is_like(found, state) for state in legal), (found, legal)
        known = [*states(name), *between.values()]
        bodies = {body for state in known for body in state.values()} | {OTHER}
        whole = [(key, body) for key, body in self.store.versions if " (recovered " not in key]
        torn = [(key, body) for key, body in whole if body and body not in bodies]
        assert torn == []
        assert self.store._uploads == {}, "an upload that nobody ends"
        assert [path.name for path in folder.iterdir() if path.name.isdigit()] == [], "staged files are left"
        with sqlite3.connect(folder / "journal.sqlite") as journal:
            assert journal.execute("SELECT key FROM pending").fetchall() == []
            assert journal.execute("SELECT number FROM contents").fetchall() == []
        journal.close()


def is_like(found: State, wanted: State) -> bool:
    """The same, but for the markers of folders that were left, the time in names, and half-written files."""
    found = {key: body for key, body in found.items() if " (recovered " not in key}
    short = {
        key.partition(" (conflict")[0] + " (conflict" if " (conflict" in key else key: found[key]
        for key in found
    }
    markers = {key for key in {*short, *wanted} if key.endswith("/")}
    plain = {key: body for key, body in short.items() if key not in markers}
    return plain == {key: body for key, body in wanted.items() if key not in markers}
