"""docs/architecture.md names the modules and libraries there are, all of them."""

from __future__ import annotations

import re
import tomllib

from tests.docs.doc_pages import ROOT, code, table

PAGE = ROOT / "docs" / "architecture.md"


def test_the_modules_of_the_layers_exist_and_none_is_forgotten() -> None:
    named = {name for row in table(PAGE, "layer", "modules") for name in code(row[1])}
    missing = [
        n for n in named if not (ROOT / "vfs" / f"{n}.py").exists() and not (ROOT / "vfs" / n).is_dir()
    ]
    assert missing == []
    modules = {p.stem for p in (ROOT / "vfs").glob("*.py") if not p.stem.startswith("_")}
    mentioned = set(re.findall(r"`([\w/]+)`", PAGE.read_text()))
    assert modules - mentioned == set()


def test_every_library_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]}
    explained = {name for row in table(PAGE, "library", "for") for name in code(row[0])}
    assert explained == needed
