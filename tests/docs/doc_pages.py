"""The pages as data: fenced blocks, tables, links; and what a command printed against what a page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. kind: what follows the fence. line: where it begins. before: the line of text above."""

    page: Path
    kind: str
    body: str
    line: int
    before: str


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The fenced blocks of a page, of certain kinds or all."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        above = [line for line in text[: match.start()].splitlines() if line.strip()]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, match["kind"].strip(), match["body"], line, above[-1] if above else ""))
    return [block for block in found if not kinds or block.kind in kinds]


@dataclass(frozen=True)
class Command:
    """A line after `$ ` (and those after `> `), and the lines the page shows as its output."""

    text: str
    expected: str
    where: str


def commands(page: Path) -> Iterator[Command]:
    """The commands of the `console` blocks of a page, in order."""
    for block in blocks(page, "console"):
        typed: list[str] = []
        shown: list[str] = []
        start = block.line
        for number, line in enumerate(block.body.splitlines(), block.line + 1):
            if line.startswith("$ "):
                if typed:
                    yield Command("\n".join(typed), "\n".join(shown), f"{page.name}:{start}")
                typed, shown, start = [line[2:]], [], number
            elif line.startswith("> ") and typed and not shown:
                typed.append(line[2:])
            else:
                shown.append(line)
        if typed:
            yield Command("\n".join(typed), "\n".join(shown), f"{page.name}:{start}")


def same_output(expected: str, found: str) -> bool:
    """True when the output is as shown: `...` stands for anything, spaces are one or (at ends) none."""
    wanted = re.escape(_tidy(expected)).replace(r"\.\.\.", ".*").replace(r"\ ", " ")
    return re.fullmatch(wanted, _tidy(found), re.DOTALL) is not None


def _tidy(text: str) -> str:
    return "\n".join(re.sub(r"[ \t]+", " ", line.strip()) for line in text.strip().splitlines())


def table(page: Path, *header: str) -> list[list[str]]:
    """The rows of all tables of a page whose first cells are `header`; cells stripped, `\\|` is a bar."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line.strip("|"))]
        if cells[: len(header)] == list(header):
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            found.append(cells)
    return found


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
