"""What the pages refer to exists: tests, files, sections, errors, messages, metrics."""

from __future__ import annotations

import ast
import errno
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.doc_pages import PAGES, ROOT, code, table
from tests.docs.doc_tables import TABLES, with_table
from vfs import errors

DOCS = ROOT / "docs"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@cache
def named_tests(path: str) -> frozenset[str]:
    """The names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(function.name for function in found if function.name.startswith("test_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_a_page_names_exists(page: Path) -> None:
    missing = [f"{f}::{n}" for f, n in _TEST.findall(page.read_text()) if n not in named_tests(f)]
    assert missing == []


def test_every_promise_names_its_tests() -> None:
    text = (DOCS / "semantics.md").read_text()
    promises = re.split(r"^### ", text.split("\n## Writing")[0], flags=re.MULTILINE)[1:]
    names = [promise.partition(".")[0] for promise in promises]
    assert names[:11] == ["C1", "C2", "C3", "C4", "C5", "A1", "A2", "A3", "A4", "A5", "A6"]
    assert [promise.partition("\n")[0] for promise in promises if not _TEST.search(promise)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file, _, section = target.partition("#")
        other = page.parent / file if file else page
        if not other.exists() or (section and section not in sections(other)):
            broken.append(target)
    assert broken == []


def sections(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_error_class_is_explained_with_its_errno() -> None:
    shown = table(DOCS / "troubleshooting.md", "error", "errno")
    rows = {code(row[0])[0]: getattr(errno, code(row[1])[0]) for row in shown}
    classes = {
        name: kind.errno
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ReelfsError) and kind is not errors.ReelfsError
    }
    assert rows == classes


def test_every_message_quoted_is_one_the_program_says() -> None:
    """Each part between ellipses stands in the source, whatever is filled in between."""
    source = "\n".join(p.read_text() for d in ("vfs", "plugins") for p in (ROOT / d).rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that are continued on the next line
    rows = table(DOCS / "troubleshooting.md", "message", "because")
    assert len(rows) > 15
    unknown = [
        part.strip()
        for row in rows
        for message in code(row[0])
        for part in message.split("...")
        if part.strip() and part.strip() not in source
    ]
    assert unknown == []


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.stem)
def test_tables_made_from_the_program_are_up_to_date(page: Path) -> None:
    name, make = TABLES[page]
    text = page.read_text()
    assert text == with_table(text, name, make()), "run `python -m tests.docs.doc_tables`"


def test_no_page_is_forgotten_in_the_index() -> None:
    text = (DOCS / "index.md").read_text()
    assert [p.name for p in DOCS.glob("*.md") if p.name != "index.md" and f"({p.name})" not in text] == []
