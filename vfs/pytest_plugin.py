"""Fixtures for tests of reelfs and of its plugins, loaded by pytest through the entry point `pytest11`.

`quiet_logs`: the test fails when reelfs or a plugin logs a warning or worse that it did not ask for; use it
for all tests of a project by an automatic fixture of its own. A test that means to provoke such a line says
so with `expected_logs("text")`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

#: The loggers whose warnings count: the core, and plugins by the naming rule of their packages.
WATCHED = re.compile(r"vfs(_\w+)?(\.|$)")


class ExpectedLogs:
    """`expected_logs("text")` lets through warnings whose message matches a regular expression."""

    def __init__(self) -> None:
        self.patterns: list[str] = []

    def __call__(self, pattern: str) -> None:
        """Expect at least one such line."""
        self.patterns.append(pattern)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if WATCHED.match(record.name):
            self.records.append(record)


@pytest.fixture
def expected_logs() -> ExpectedLogs:
    """Call it with a regular expression for every warning the test provokes."""
    return ExpectedLogs()


@pytest.fixture
def quiet_logs(expected_logs: ExpectedLogs) -> Iterator[None]:
    """Fail the test for an unexpected warning of reelfs or a plugin, or an expected one that is missing."""
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(collector)
    texts = [record.getMessage() for record in collector.records]
    unexpected = [text for text in texts if not any(re.search(p, text) for p in expected_logs.patterns)]
    if unexpected:
        pytest.fail("unexpected log lines:\n" + "\n".join(unexpected), pytrace=False)
    unmet = [p for p in expected_logs.patterns if not any(re.search(p, text) for text in texts)]
    if unmet:
        pytest.fail(f"expected log lines that did not come: {unmet}", pytrace=False)
