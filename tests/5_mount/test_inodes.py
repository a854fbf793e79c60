"""Inode numbers without a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vfs import inodes
from vfs.errors import Stale
from vfs.found import Found
from vfs.inodes import ROOT, Inodes
from vfs.nodes import Bytes, Directory, Node, Spliced
from vfs.spans import Inline, Layout, StoredObject


async def nothing() -> bytes:
    return b""


async def no_entries() -> dict[str, Node | None]:
    return {}


FOLDER = Directory(entries=no_entries)


def file(path: str, version: str = "1", ttl: float = 0.0) -> Found:
    return Found(path, Spliced(layout=Layout([Inline(b"abc")])), version, 0, ttl)


def table() -> Inodes:
    return Inodes(Found("", FOLDER))


def test_the_root_is_one_and_never_forgotten() -> None:
    known = table()
    assert known.number(Found("", FOLDER)) == ROOT
    known.forget(ROOT, 10**6)
    assert known[ROOT].found.path == ""


def test_numbers_depend_on_path_version_and_kind_alone() -> None:
    known = table()
    number = known.number(file("a"))
    assert number == table().number(file("a", ttl=5.0))
    assert known.number(file("b")) != number
    assert known.number(file("a", "2")) != number
    assert known.number(Found("a", FOLDER)) != known.number(Found("a", Bytes(produce=nothing, version=None)))
    assert known.number(Found("a", FOLDER)) == table().number(Found("a", FOLDER))
    assert known.number(file("\udcff")) != known.number(file("\udcfe"))


def test_all_spellings_of_a_selection_are_one_number() -> None:
    source, other = StoredObject("a/x.mp4", 9, "v", 0), StoredObject("a/y.mp4", 9, "v", 0)

    def number(path: str, version: str = "1", of: StoredObject = source) -> int:
        return table().number(replace(file(path, version), sources=(of,)))

    wanted = number("a/x@5s.jpg")
    for path in ("a/x@5.0s.jpg", "a/x.mp4@5000ms.jpg", "a/x.mp4@/00:05.jpg", "a/x@/5.jpg"):
        assert number(path) == wanted
    assert wanted not in {
        *(number("a/x@5s.png"), number("a/x@5s.jpg", "2"), number("a/x@5s.jpg", of=other)),
        *(number("a/x@6s.jpg"), number("a/x@5s-.jpg"), number("a/x.mp4@/info.json"), number("a/x@5s")),
    }
    # A stored file that happens to have such a name is itself.
    stored = StoredObject("a/x@5s.jpg", 9, "v", 0)
    assert number("a/x@5s.jpg", of=stored) == table().number(file("a/x@5s.jpg"))


def test_numbers_are_positive_and_spread() -> None:
    known = table()
    numbers = {known.number(file(str(n))) for n in range(20_000)}
    assert len(numbers) == 20_000
    assert min(numbers) > ROOT
    assert max(numbers) < 1 << 63


def test_references_are_counted() -> None:
    known = table()
    number = known.remember(file("a")).number
    assert known.remember(file("a")).lookups == 2
    known.forget(number, 1)
    assert known[number].lookups == 1
    known.forget(number, 1)
    with pytest.raises(Stale):
        known[number]
    known.forget(number, 1)
    assert len(known) == 1


def test_peeking_counts_nothing() -> None:
    known = table()
    assert known.peek(file("a")).lookups == 0
    assert len(known) == 1


def test_the_newest_answer_about_an_inode_is_kept_and_its_settled_size_stays() -> None:
    known = table()
    made = Bytes(produce=nothing, version="1")
    inode = known.remember(Found("a", made, "1"))
    assert inode.size is None
    inode.size = 7
    again = known.remember(Found("a", made, "1", ttl=9.0))
    assert (again is inode, again.size, again.found.ttl) == (True, 7, 9.0)


def test_volatile_is_a_made_file_without_a_version() -> None:
    known = table()
    assert known.remember(Found("a", Bytes(produce=nothing, version=None))).volatile
    assert not known.remember(Found("b", Bytes(produce=nothing, version="1"), "1")).volatile
    assert not known.remember(Found("c", FOLDER)).volatile


def test_a_collision_takes_the_next_number_while_both_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "_candidates", lambda wanted: iter((5, 6, 7)))
    known = table()
    first, second = known.remember(file("a")), known.remember(file("b"))
    assert (first.number, second.number) == (5, 6)
    assert known.remember(file("a")).number == 5
    assert known.remember(file("b")) is second
    known.forget(5, 2)
    assert known.remember(file("c")).number == 5
