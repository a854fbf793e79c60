"""A few files a day through all checks of `docs/fidelity.md`, and that the page tells of every file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from client_mounts import SEED, SHARED, reelfs, some  # noqa: E402
from fidelity import ENCRYPTED, Truths  # noqa: E402
from fidelity_page import KNOWN, PAGE, Media, media, real, unexpected  # noqa: E402
from mp4_exact import SAMPLES, is_quick  # noqa: E402


def files() -> list[Any]:
    """Two real files of the day, of those that decode quickly; generated ones have tests of their own."""
    names = real() if SHARED.is_dir() else []
    made = [f"{name}{'.mov' if name.endswith('_mov') else '.mp4'}" for name in SAMPLES]
    return [
        *some(["real"], [name for name in names if is_quick(name)], 2),
        *some(["real"], [name for name in names if not is_quick(name)], 0),
        *some(["generated"], made, 0),
    ]


@pytest.fixture(scope="module")
def real_media() -> Iterator[Media]:
    with media("real") as made:
        yield made


@pytest.fixture(scope="module")
def generated_media() -> Iterator[Media]:
    with media("generated") as made:
        yield made


@pytest.mark.shared
@pytest.mark.fuse
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "name"), files())
def test_every_check_of_a_file(request: pytest.FixtureRequest, kind: str, name: str, tmp_path: Path) -> None:
    folder: Media = request.getfixturevalue(f"{kind}_media")
    # Where something is known to be wrong, what else is depends on the instants.
    found = folder.found(name, Truths(tmp_path), "" if name in KNOWN else f"{SEED} ")
    assert found.figures
    assert unexpected(found) == []


@pytest.mark.shared
@pytest.mark.parametrize("name", ENCRYPTED)
def test_explain_says_that_a_file_is_encrypted(name: str, tmp_path: Path) -> None:
    done = reelfs(tmp_path, "explain", SHARED, f"{name}@0s.jpg")
    assert (done.returncode != 0, "encrypted" in done.stderr) == (True, True)


@pytest.mark.shared
def test_the_page_tells_of_every_file_and_every_exception() -> None:
    text = PAGE.read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    made = {f"{name}{'.mov' if name.endswith('_mov') else '.mp4'}" for name in SAMPLES}
    assert rows.keys() >= {*real(), *made}
    for name, causes in KNOWN.items():
        for check, cause in causes.items():
            assert f"- `{name}`, {check}: {cause}." in text
    # Whatever is not full is explained.
    for name, row in rows.items():
        parts = [cell.split("/") for cell in row.split(" | ") if cell.count("/") == 1]
        short = [p for p in parts if all(n.strip().isdigit() for n in p) and p[0].strip() != p[1].strip()]
        assert not short or name in KNOWN, row
