"""docs/configuration.md is what the program takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from vfs_h4mk.keys import read_keys

from tests.docs.doc_pages import PAGES, ROOT, Block, blocks
from vfs.config import Settings

PAGE = ROOT / "docs" / "configuration.md"
TOML = [block for page in PAGES for block in blocks(page, "toml")]


@pytest.mark.parametrize("block", TOML, ids=lambda block: f"{block.page.stem}-{block.line}")
def test_a_file_shown_is_one_that_is_taken(block: Block, tmp_path: Path) -> None:
    if "project" in (document := tomllib.loads(block.body)):
        assert "vfs" in document["project"]["entry-points"]
        return
    if any("*" in name for name in document):  # a key file of containers
        path = tmp_path / "keys.toml"
        path.write_text(block.body)
        path.chmod(0o600)
        assert read_keys(path).of("games/x.h4mk").master_key is not None
        return
    file = tmp_path / "config.toml"
    file.write_text(block.body)
    settings = Settings.load(config=file, environ={})
    assert settings.origins.keys() >= {key for key, value in document.items() if not isinstance(value, dict)}
