"""Every command a page shows is run, and prints what the page says it prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.docs.doc_pages import PAGES, blocks, commands, same_output

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


def test_ellipses_and_spaces_are_all_that_may_differ() -> None:
    assert same_output("a  b ...\nd", "a b c\nc2\nd\n")
    assert not same_output("a ...\nd", "a b\nc")
    assert same_output("a\n...\nb", "a\n  1\n b")
    assert not same_output("", "surprise")
    assert same_output("...", "")
