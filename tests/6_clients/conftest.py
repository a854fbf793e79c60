"""One library and one mount of it for all tests with real programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
#: `client_mounts` and `client_players` here; the truth about clips in `mp4_exact` there.
sys.path[:0] = [str(HERE), str(HERE.parent / "4_plugins")]

import client_mounts  # noqa: E402


@pytest.fixture(scope="session")
def client_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated videos and other files, made once; not to be changed."""
    return client_mounts.make_library(tmp_path_factory.mktemp("clients") / "library")


@pytest.fixture(scope="session")
def mount(tmp_path_factory: pytest.TempPathFactory, client_library: Path) -> Iterator[client_mounts.Mount]:
    """The library, mounted once for all tests that leave no trouble in its log."""
    with client_mounts.mounted(tmp_path_factory.mktemp("mount"), client_library) as made:
        yield made


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[client_mounts.Mount]:
    """The real media beside the checkout, as they lie there."""
    with client_mounts.mounted(tmp_path_factory.mktemp("shared"), client_mounts.SHARED) as made:
        yield made
