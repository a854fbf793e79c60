"""The SEL grammar and names that cannot be paths."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs import names


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("5", "5s"),
        ("5s", "5s"),
        ("5.0s", "5s"),
        ("5000ms", "5s"),
        ("1m5s", "65s"),
        ("1h", "3600s"),
        ("1h0m0.5s", "3600.5s"),
        ("00:01:05.5", "65.5s"),
        ("1:05", "65s"),
        ("0.000000001", "0.000000001s"),
        ("0.5ms", "0.0005s"),
        ("f123", "f123"),
        ("k3", "k3"),
        ("5s-9.5s", "5s-9.5s"),
        ("5-9.5", "5s-9.5s"),
        ("5+4.5", "5s-9.5s"),
        ("5000ms+4500ms", "5s-9.5s"),
        ("5s-", "5s-"),
        ("f10-f20", "f10-f20"),
        ("f10+f10", "f10-f20"),
        ("k3+2s", "k3+2s"),
        ("k1-9s", "k1-9s"),
    ],
)
def test_spellings_of_one_selection_share_one_canonical_form(spelling: str, canonical: str) -> None:
    selection = names.parse_selection(spelling)
    assert selection is not None
    assert selection.canonical == canonical
    assert names.parse_selection(canonical) == selection


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-5",
        "+5",
        "5--9",
        "9-5",
        "5-5",
        "5+0",
        "nan",
        "inf",
        "1e5",
        "5 s",
        "٥",
        "5.",
        ".5",
        "1234567890",
        "5,5",
        "0.1234567890",
        "f",
        "f-1",
        "f1.5",
        "k",
        "00:99:00",
        "00:00:61",
        "5s-nan",
        "5+",
        "k1+k2",
        "5ss",
        "s",
        "m",
    ],
)
def test_what_is_not_in_the_grammar_is_nothing(text: str) -> None:
    assert names.parse_selection(text) is None


@given(st.fractions(0, 10**8, max_denominator=10**9).filter(lambda f: 10**9 % f.denominator == 0))
def test_times_are_exact(seconds: Fraction) -> None:
    moment = names.Moment("time", seconds)
    assert names.parse_moment(moment.canonical) == moment


@given(st.text(max_size=40))
def test_any_text_parses_or_is_nothing_and_parsing_is_stable(text: str) -> None:
    derived = names.parse_derived(text)
    if derived is not None:
        assert names.parse_derived(derived.canonical) == derived


def test_a_derived_name_is_cut_at_its_last_at() -> None:
    assert names.split_derived("a@b.mp4@5s.jpg") == ("a@b.mp4", "5s.jpg")
    assert names.split_derived("x.mp4@") == ("x.mp4", "")
    assert names.split_derived("@5s.jpg") is None
    assert names.split_derived("plain.mp4") is None


def test_mode_and_format() -> None:
    derived = names.parse_derived("5s-9.5s.frag.mp4")
    assert derived is not None
    assert (derived.mode, derived.format, derived.canonical) == ("frag", "mp4", "5s-9.5s.frag.mp4")
    plain = names.parse_derived("1.5s.jpg")
    assert plain is not None
    assert (plain.mode, plain.format) == ("", "jpg")
    assert names.parse_derived("5.0") is None
    assert names.parse_derived("info.json") is None


@pytest.mark.parametrize(
    "key", ["a//b", "/a", "../a", "a/../b", "a/./b", "a\0b", "x" * 256, "a/" + "é" * 128, ""]
)
def test_keys_that_cannot_be_paths(key: str) -> None:
    assert not names.is_path(key)


@pytest.mark.parametrize("key", ["a", "a/b", "a/", "ünï/çode.mp4", "a b", "..a", "x" * 255])
def test_keys_that_can(key: str) -> None:
    assert names.is_path(key)


@given(st.text(min_size=1, max_size=60))
def test_escape_makes_one_component_that_unescapes_to_the_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    escaped = names.escape(text)
    assert names.unescape(escaped) == text
    assert not text or "/" not in escaped
    assert escaped not in (".", "..")
    assert "\0" not in escaped


# -- names beside databases ---------------------------------------------------------------------------------


def test_names_that_sqlite_keeps_beside_a_database() -> None:
    assert names.companion("database.sqlite-wal") == ("database.sqlite", "wal")
    assert names.companion("database.sqlite-shm") == ("database.sqlite", "shm")
    assert names.companion("a-b-journal") == ("a-b", "journal")
    for name in ("-wal", "database.sqlite", "database.sqlite-WAL", "x-waldo", "wal", "x-mj0123", ""):
        assert names.companion(name) is None, name
    assert names.is_database_name("Profile.SQLITE")
    assert all(names.is_database_name("x" + ending) for ending in (".sqlite3", ".db", ".db3"))
    assert not names.is_database_name("notes.txt")


def test_another_file_beside_one_keeps_its_extension() -> None:
    assert names.marked("database.sqlite", "conflict x") == "database (conflict x).sqlite"
    assert names.marked(".profile", "conflict x") == ".profile (conflict x)"
    assert names.marked("none", "m") == "none (m)"
    long = names.marked("é" * 127 + ".db", "conflict 2026-11-20T12-00-00Z host")
    assert len(long.encode()) <= names.NAME_MAX
    assert long.endswith("é (conflict 2026-11-20T12-00-00Z host).db")
