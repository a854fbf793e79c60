"""W3: killed at any instant, nothing that was closed is lost, and nothing torn is ever in the store.

Each story is told once to learn its points: before, in and after each commit of the journal and each sync of
a staged file, and around each request that changes the store. Then it is told once for each of them, and the
process is killed there; a second process finds what it left, and sends it. In the end the store is as after
the last step that was finished, or the one after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash import stories
from tests.crash.parent import ParentStore
from tests.crash.stories import STORIES, Teller


@pytest.fixture(scope="module")
def processes() -> Any:
    return stories.processes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParentStore]:
    with ParentStore(tmp_path / "socket") as store:
        yield store


@pytest.fixture
def teller(processes: Any, store: ParentStore) -> Iterator[Teller]:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="reelfs-crash-", dir=memory) as folder:
        yield Teller(processes, store, Path(folder))


@pytest.mark.parametrize("name", STORIES)
def test_killed_where_each_name_comes_first(name: str, teller: Teller) -> None:
    points = teller.points(name)
    for at in sorted({points.index(point) + 1 for point in points}):
        teller.killed(name, at)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_everywhere(teller: Teller, capsys: pytest.CaptureFixture[str]) -> None:
    """Everywhere, and everywhere once more while it recovers."""
    for name in STORIES:
        for at in range(1, len(teller.points(name)) + 1):
            teller.killed(name, at)
            teller.killed(name, at, 1 + at % 11)
    with capsys.disabled():
        print(f"\n{teller.kills.total()} kills: {dict(teller.kills)}")
    assert teller.kills.total() >= 500
