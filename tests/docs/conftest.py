"""What the pages are tried on: the sample library, in a folder and in a bucket of a local S3 server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: As the user data lies in the real bucket.
BUCKET = "reel-ballers-users"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`user_data/` with one user, made once; not to be changed."""
    base = tmp_path_factory.mktemp("library") / "user_data"
    subprocess.run([sys.executable, ROOT / "scripts" / "sample_library.py", base], check=True)
    return base


@pytest.fixture
def reader_of_docs(tmp_path: Path, library: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder to type commands in, with `user_data/` in it, and the environment of who types them."""
    folder = tmp_path / "here"
    shutil.copytree(library, folder / "user_data")
    home = tmp_path / "home"
    home.mkdir()
    yield folder, environment(home)
    _unmount_all_below(tmp_path)


def environment(home: Path) -> dict[str, str]:
    """No settings of the machine's own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8"}


def _unmount_all_below(folder: Path) -> None:
    """A page that failed half way must leave no mount behind."""
    from vfs.mounts import mounts, unmount

    for mounted in mounts():
        if mounted.ours and mounted.path.startswith(f"{folder}/"):
            unmount(mounted.path, lazy=True)


@pytest.fixture(scope="session")
def bucket(library: Path) -> Iterator[dict[str, str]]:
    """The library in a bucket of a local server: the variables that lead to it, named as for R2."""
    from tests.servers import ACCESS_KEY, SECRET_KEY, moto_server

    objects = {str(p.relative_to(library)): p.read_bytes() for p in library.rglob("*") if p.is_file()}
    with moto_server() as server:
        server.fill(BUCKET, objects)
        yield {
            "R2_ENDPOINT": server.url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": SECRET_KEY,
        }
