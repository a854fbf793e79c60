"""Looking through lists of faiss: what is found is what a look through all vectors finds, nearly always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from vfs_search import engine, fast, features
from vfs_search.catalog import norms

pytestmark = pytest.mark.skipif(
    not fast.installed(), reason="faiss is not installed: pip install 'reelfs[fast]'"
)

ROWS = 20_000


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.uint8]:
    """As pictures give them: mixtures of those of soft noise."""
    chance = np.random.default_rng(1)
    coarse = chance.integers(0, 256, (400, 12, 12)).astype(np.float32)
    weights = np.kron(np.eye(12), np.ones((6, 1)))[:64].astype(np.float32)
    base = features.grad512(np.matmul(np.matmul(weights, coarse), weights.T)) ** 2
    one, two = chance.integers(0, len(base), (2, ROWS))
    share = chance.random((ROWS, 1), np.float32)
    mixed = np.sqrt(base[one] * share + base[two] * (1 - share))
    return features.quantised(mixed * (1 + 0.2 * np.abs(chance.standard_normal(mixed.shape, np.float32))))


@pytest.fixture(scope="module")
def folder(vectors: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of the first nine tenths of them."""
    made = tmp_path_factory.mktemp("lists")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "LEAST", 1000)
        assert fast.make(vectors[: ROWS * 9 // 10], made)
        assert not fast.make(vectors, made), "nine tenths are enough"
        assert not fast.make(vectors[:999], made), "too few"
    return made


def asked(vectors: NDArray[np.uint8], count: int) -> features.Floats:
    chance = np.random.default_rng(2)
    chosen = chance.integers(0, ROWS, count)
    changed = vectors[chosen] * (1 + 0.2 * chance.standard_normal((count, 512)))
    return features.restored(np.clip(changed, 0, 255).astype(np.uint8))


def test_nearly_all_that_an_exact_look_finds(vectors: NDArray[np.uint8], folder: Path) -> None:
    """Of the 20 nearest 97 in 100, with the same cosines; dead rows never, rows behind the lists always."""
    lists = fast.opened(folder)
    assert lists is not None
    alive = np.ones(ROWS, np.bool_)
    alive[::3] = False
    queries, lengths = asked(vectors, 200), norms(vectors)
    columns: dict[str, NDArray[Any]] = {"grad512": vectors, "norms": lengths}
    near = engine.nearest(columns.__getitem__, alive, queries, 20, 0.3, lists)
    true = engine.exact(vectors, lengths, alive, queries, 20, 0.3)
    shared = [
        set(one[one >= 0]) & set(other[other >= 0]) for one, other in zip(near.rows, true.rows, strict=True)
    ]
    assert sum(map(len, shared)) >= 0.97 * (true.rows >= 0).sum()
    assert np.mean(near.rows[:, 0] == true.rows[:, 0]) >= 0.97
    assert np.allclose(near.scores[:, 0], true.scores[:, 0], atol=0.05)
    assert not (near.rows % 3 == 0).any()
    behind = [row[row >= lists.rows] for row in true.rows]
    assert all(set(wanted) <= set(found) for wanted, found in zip(behind, near.rows, strict=True))
    assert (np.diff(near.scores, axis=1) <= 0).all()


def test_what_is_damaged_is_as_if_it_were_not_there(folder: Path, tmp_path: Path) -> None:
    assert fast.opened(tmp_path) is None
    (tmp_path / fast.NAME).write_bytes((folder / fast.NAME).read_bytes()[:5000])
    assert fast.opened(tmp_path) is None
    (tmp_path / fast.NAME).write_bytes(b"")
    assert fast.opened(tmp_path) is None
