"""What holds for all tests: quiet logs, and long ones only when asked for."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

#: `from tests.servers import ...` and `from tests.faults.proxy import ...` work from every folder of tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Real files nobody here wrote, beside the checkout; tests that use them skip when it is not there.
SHARED = Path(__file__).resolve().parents[2] / "shared"


# A shell starts what it puts in the background with interrupts ignored, and programs hand that down: tests
# that interrupt a program need it back.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--update-docs", action="store_true", help="write the tables of docs/players.md anew")


def pytest_configure(config: pytest.Config) -> None:
    # Which slice of the clients' tests runs is the same in all processes of a run, also at midnight.
    os.environ.setdefault("CLIENTS_SEED", str(int(time.time() // 86_400)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured and do not judge: the property "told" of a test."""
    terminalreporter.write_line(f"tests/6_clients: the slice of CLIENTS_SEED={os.environ['CLIENTS_SEED']}")
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == "told":
                terminalreporter.write_line(f"{report.nodeid}: {line}")


#: Fixtures that mount: what uses one needs FUSE.
MOUNTING = {"mounted", "mounting", "common", "mount", "shared_mount", "mount_it"}
NO_FUSE = "FUSE cannot be used here: /dev/fuse or fusermount3 is missing"


def can_mount() -> bool:
    """Whether this machine mounts."""
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mounting = [i for i in items if "fuse" in i.keywords or MOUNTING & {*getattr(i, "fixturenames", ())}]
    if mounting and not can_mount():
        if os.environ.get("CI"):
            raise pytest.UsageError(f"{NO_FUSE}: {len(mounting)} tests could not run, which CI must not hide")
        for item in mounting:
            item.add_marker(pytest.mark.skip(reason=NO_FUSE))
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
