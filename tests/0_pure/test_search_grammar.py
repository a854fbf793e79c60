"""Queries as path components: what they mean, and that nothing else gets through."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfs_search.grammar import MAX_TERMS, Options, Term, parse_moment, parse_text

from vfs import Malformed, escape


@pytest.mark.parametrize(
    ("component", "terms"),
    [
        ("goal", [Term("", "goal")]),
        ("left_foot", [Term("", "left foot")]),
        ("left%20foot", [Term("", "left foot")]),
        ("tag:goal+rating:4..", [Term("tags", "goal"), Term("rating", low="4")]),
        ("rating:4", [Term("rating", low="4", high="4")]),
        ("rating:..2.5", [Term("rating", high="2.5")]),
        ("date:2025-09..2025-10", [Term("date", low="2025-09", high="2025-10")]),
        ("-tag:miss+goal", [Term("tags", "miss", negative=True), Term("", "goal")]),
        ('"tag:goal"', [Term("", "tag:goal")]),
        ('"a+b"+c', [Term("", "a+b"), Term("", "c")]),
        ("a%2Bb", [Term("", "a+b")]),
        ("type:away+opponent:River%20Rovers", [Term("type", "away"), Term("opponent", "River Rovers")]),
        ("++goal++", [Term("", "goal")]),
    ],
)
def test_terms(component: str, terms: list[Term]) -> None:
    assert list(parse_text(component)[0].terms) == terms


@pytest.mark.parametrize(
    "component",
    [
        "", "+", "-", "tag:", "tag:--", "rating:", "rating:..", "rating:x", "rating:1e9", "rating:nan",
        "date:yesterday", "date:2025-9", "colour:red", "in:", '"open', "%00", "...",
        "+".join("a" * (MAX_TERMS + 1)),
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused_with_a_reason(component: str) -> None:
    with pytest.raises(Malformed) as raised:
        parse_text(component)
    assert str(raised.value)


def test_a_folder_may_stand_among_the_terms() -> None:
    assert parse_text("goal+in:a/games")[1].folder == "a/games"
    assert parse_text("in:games%2F")[1] == Options(folder="games")


def test_options() -> None:
    options = Options()
    for component in ("limit:7", "min:0.4", "in:games%2F", "sort:date", "descriptor:rep0st"):
        found = options.with_option(component)
        assert found is not None
        options = found
    assert options == Options(7, 0.4, "games", "date", "rep0st")
    assert options.wants("games/a.mp4")
    assert not options.wants("games2/a.mp4")
    assert Options().with_option("nothing") is None
    for wrong in ("limit:0", "limit:-1", "limit:1000000", "min:2", "min:1e-3", "sort:size"):
        with pytest.raises(Malformed):
            options.with_option(wrong)


def test_moments() -> None:
    found = parse_moment("a%2Fgames%2Fx@y.mp4@1m5s", is_range=False)
    assert (found.path, found.selection.canonical) == ("a/games/x@y.mp4", "65s")
    assert parse_moment("x.mp4@5-9.5s", is_range=True).selection.canonical == "5s-9.5s"
    for wrong in (
        "x.mp4",
        "x.mp4@",
        "@5s",
        "x.mp4@-1s",
        "x.mp4@5s-9s",
        "..%2Fx@5s",
        "x%2F%2Fy@5s",
        "a%00@5s",
    ):
        with pytest.raises(Malformed):
            parse_moment(wrong, is_range=False)
    with pytest.raises(Malformed):
        parse_moment("x.mp4@5s", is_range=True)


@given(
    st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8), min_size=1, max_size=3)
)
def test_any_path_comes_back(parts: list[str]) -> None:
    path = "/".join(parts)
    if any(part in (".", "..") or "/" in part or not part for part in path.split("/")):
        return
    try:
        encoded = escape(path)
    except UnicodeEncodeError:
        return
    assert parse_moment(f"{encoded}@5s", is_range=False).path == path


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        query, options = parse_text(text)
        assert query.terms or options.folder
