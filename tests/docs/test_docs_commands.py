"""Every command a page shows is run, and prints what the page says it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.docs.doc_pages import PAGES, blocks, commands, same_output
from vfs import cli

WITH_COMMANDS = [page for page in PAGES if blocks(page, "console")]
NOT_RUN = "*Not run by "


@pytest.mark.timeout(300)  # thirty programs, each a fraction of a second on a machine that is free
@pytest.mark.fuse
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_it_says(
    page: Path, reader_of_docs: tuple[Path, dict[str, str]], bucket: dict[str, str]
) -> None:
    folder, environ = reader_of_docs
    for command in commands(page):
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=folder,
            env=environ | bucket,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=90,
            check=False,
            text=True,
            errors="replace",
        )
        told = f"{command.where}: $ {command.text}\nexit code {done.returncode}, printed:\n{done.stdout}"
        assert same_output(command.expected, done.stdout), f"{told}\nthe page says:\n{command.expected}"
        # What is shown to fail says so in its text, which starts with the name of the program.
        assert done.returncode == 0 or "reelfs: " in command.expected, told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in {"console", "sh", "text", "toml", "python", "ini", "json", "html"}, (
            f"{page.name}:{block.line}: an unknown kind of block: {block.kind!r}"
        )
        if block.kind == "sh":
            assert block.before.startswith(NOT_RUN), (
                f"{page.name}:{block.line}: commands no test runs, and no line above that says why"
            )


def misnamed(text: str) -> list[str]:
    """The commands of a text that do not exist, or have not the options they are shown with."""
    spans = re.findall(r"`(reelfs [^`]+)`", text)
    spans += re.findall(r"^(?:\$ |sudo |\$ sudo )(reelfs .+)$", text, re.MULTILINE)
    found = []
    for span in spans:
        words = span.split()[1:]
        command: Any = typer.main.get_command(cli.app)
        while words and hasattr(command, "get_command") and words[0][0] not in "-(|.":
            name = words.pop(0).rstrip(",.:;").partition("|")[0]
            command = command.get_command(None, name)
            if command is None:
                found.append(f"`{span}`: no command {name}")
        known = {o for p in getattr(command, "params", ()) for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in words:
            if word in ("|", "||", "&&", ">", "#"):
                break
            flag = word.partition("=")[0].rstrip("],.)")
            if flag.startswith("--") and flag not in known and command is not None:
                found.append(f"`{span}`: no option {flag}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_named_in_the_text_exist_with_their_options(page: Path) -> None:
    """In sentences, tables and blocks that are not run, too."""
    assert misnamed(page.read_text()) == []


def test_a_command_that_does_not_exist_is_found() -> None:
    told = misnamed("so `reelfs mont x` and `reelfs umount --lasy`:\n$ reelfs service instal a\n")
    assert [line.rpartition(": ")[2] for line in told] == [
        "no command mont",
        "no option --lasy",
        "no command instal",
    ]


def test_ellipses_and_spaces_are_all_that_may_differ() -> None:
    assert same_output("a  b ...\nd", "a b c\nc2\nd\n")
    assert not same_output("a ...\nd", "a b\nc")
    assert same_output("a\n...\nb", "a\n  1\n b")
    assert not same_output("", "surprise")
    assert same_output("...", "")
