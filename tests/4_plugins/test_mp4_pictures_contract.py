"""The contract of views, for those of pictures: exact sizes, stable versions, listings that read nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from vfs_mp4.pictures import Pictures  # noqa: E402
from vfs_mp4.ranges import Ranges  # noqa: E402
from vfs_mp4.storyboard import Storyboards  # noqa: E402

from vfs import View  # noqa: E402
from vfs.testing import ViewContract  # noqa: E402


@pytest.fixture(scope="class", autouse=True)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two groups of pictures."""
    path = tmp_path_factory.mktemp("contract") / "x.mp4"
    exact.encode(path, frames=8, size=(64, 48), gop=5, audio=False)
    request.cls.objects = {"games/x.mp4": path.read_bytes(), "games/x.txt": b"no video"}


class TestPictures(ViewContract):
    names = {"games/x.mp4": ["0s-.npy", "f2-f7.npy", "0s-.gif", "0s-0.2s.webp"]}  # noqa: RUF012

    def views(self) -> Iterable[View]:
        return [Ranges(), Pictures(), Storyboards()]
