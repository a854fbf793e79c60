"""The parts of pages that are made from the program: `python -m tests.docs.doc_tables` writes them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.docs.doc_pages import ROOT
from vfs import manpage
from vfs.config import Settings
from vfs.configsources import markdown
from vfs.telemetry import METRICS


def settings() -> str:
    """Every setting."""
    return markdown(Settings.describe())


def metrics() -> str:
    """Every metric."""
    lines = ["| metric | kind | labels | counts |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def licences() -> str:
    """Every package that reelfs itself needs, as `requirements.lock` pins them, with its licence."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    lines = ["| package | licence |", "|---|---|"]
    for name in dict.fromkeys(names):
        try:
            told = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        lines.append(f"| `{name}` | {_licence(told)} |")
    return "\n".join(lines) + "\n"


def _licence(told: Any) -> str:
    """As a package says it: an SPDX expression, else its classifiers, else the first line of its text."""
    if expression := told.get("License-Expression"):
        return str(expression)
    classifiers = [
        str(c).rpartition(" :: ")[2] for c in told.get_all("Classifier") or () if c.startswith("License ::")
    ]
    if classifiers:
        return ", ".join(classifiers)
    return (str(told.get("License") or "not said").strip().splitlines() or ["not said"])[0][:60]


#: Page -> the name of its marked part, and what makes it.
TABLES: dict[Path, tuple[str, Callable[[], str]]] = {
    ROOT / "docs" / "configuration.md": ("settings", settings),
    ROOT / "docs" / "metrics.md": ("metrics", metrics),
    ROOT / "docs" / "licences.md": ("licences", licences),
}


def with_table(text: str, name: str, table: str) -> str:
    """A page with what stands between its marks replaced. Raises ValueError for a page without them."""
    begin, end = f"<!-- {name}: made by `python -m tests.docs.doc_tables` -->\n", f"<!-- end of {name} -->"
    made, count = re.subn(
        f"({re.escape(begin)}).*({re.escape(end)})", lambda m: m[1] + table + m[2], text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"no marks for {name}")
    return made


if __name__ == "__main__":
    for page, (name, make) in TABLES.items():
        page.write_text(with_table(page.read_text(), name, make()))
    manpage.write(ROOT / "man")
