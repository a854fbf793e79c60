"""What a query found, as files: what cannot be cut is left out, what could not be asked for is an error."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from vfs_search.hits import Answer, Hit
from vfs_search.results import CONTACT, Clips, clips_of, folder

import vfs
from vfs import Inline, Layout, Node, Place, Spliced


class Root:
    """A library with one good file, one damaged, and a store that answers or not."""

    def __init__(self, *, away: bool) -> None:
        self.away = away

    async def node(self, path: str) -> Node:
        await trio.lowlevel.checkpoint()
        if path == "damaged.mp4":
            raise vfs.Damaged(path)
        if self.away and path == "far.mp4":
            raise vfs.Unavailable("no answer")
        return Spliced(layout=Layout((Inline(b"clip"),)))


ANSWER = Answer(tuple(Hit(path, "", 1.0, "a") for path in ("near.mp4", "damaged.mp4", "far.mp4")), {})


def test_what_cannot_be_cut_is_left_out() -> None:
    clips = trio.run(clips_of, cast(Place, Root(away=False)), ANSWER, 10)
    assert [hit.path for hit in clips.hits.values()] == ["near.mp4", "far.mp4"]
    assert clips.left_out == ("damaged.mp4: damaged.mp4",)


def test_a_store_that_does_not_answer_is_that_error_and_no_fault_of_the_view() -> None:
    with pytest.raises(vfs.Unavailable, match="no answer"):
        trio.run(clips_of, cast(Place, Root(away=True)), ANSWER, 10)


def test_a_file_whose_name_is_no_utf_8_has_a_contact_sheet_too() -> None:
    answer = Answer((Hit("games/\udcff.mp4", "", 1.0, "a"),), {})
    root = cast(Place, Root(away=False))

    async def ask() -> Clips:
        return await clips_of(root, answer, 10)

    listed = trio.run(folder(root, 2, ask).entries)
    assert isinstance(listed[CONTACT], vfs.Bytes)
