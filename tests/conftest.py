"""What holds for all tests: quiet logs, and long ones only when asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

#: `from tests.servers import ...` and `from tests.faults.proxy import ...` work from every folder of tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Real files nobody here wrote, beside the checkout; tests that use them skip when it is not there.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="long: run with --slow")
    shared = pytest.mark.skip(reason="needs the real media beside the checkout (../shared)")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(slow)
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(shared)


@pytest.fixture(autouse=True)
def _quiet(quiet_logs: None) -> None:
    """An unexpected log line fails a test."""
