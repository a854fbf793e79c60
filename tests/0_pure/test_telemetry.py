"""Status and metrics: bounded, JSON-able, one table, priced by R2's list."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from vfs import telemetry
from vfs.config import Settings
from vfs.telemetry import METRICS, Status


@dataclass
class Counters:
    requests: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    retries: int = 0
    errors: dict[str, int] = field(default_factory=dict)


def test_every_metric_is_in_the_prometheus_text() -> None:
    status = Status(source="s3://b")
    status.observe("loop_stall_seconds", 0.02)
    status.observe("fuse_seconds", 0.02, "read")
    for metric in METRICS:
        if metric.labels and metric.kind != "histogram":
            status.count(metric.name, *("x" for _ in metric.labels))
    text = status.metrics_text()
    for metric in METRICS:
        assert f"# HELP reelfs_{metric.name}" in text
        assert f"\n{metric.full_name}" in text
    assert 'reelfs_fuse_seconds_bucket{le="0.05",operation="read"} 1.0' in text
    assert 'reelfs_fuse_seconds_bucket{le="0.01",operation="read"} 0.0' in text


def test_a_histogram_puts_each_observation_at_or_below_its_bound() -> None:
    histogram = telemetry.Histogram()
    for value in (0.0001, 0.0002, 40.0):
        histogram.observe(value)
    assert histogram.counts[0] == 1
    assert histogram.counts[1] == 1
    assert histogram.counts[-1] == 1
    assert histogram.count == 3


def test_store_figures_are_taken_when_asked_for_and_priced() -> None:
    counters, status = Counters(), Status(source="s3://b")
    status.watch_store(counters)
    counters.requests.update({"get": 1_000_000, "head": 1_000_000, "list": 2_000_000, "delete": 5})
    counters.errors["Unavailable"] = 3
    counters.bytes_read = 7
    assert status.value("store_requests") == 4_000_005
    assert status.value("store_requests", "get", "B") == 1_000_000
    assert status.cost_usd() == pytest.approx(2 * 0.36 + 2 * 4.50)
    snapshot = status.snapshot()
    assert snapshot["counters"]["store_requests"]["list/A"] == 2_000_000
    assert snapshot["counters"]["store_errors"] == {"Unavailable": 3}
    assert snapshot["counters"]["store_bytes_read"] == 7
    assert snapshot["cost_usd"] == pytest.approx(9.72)
    assert "reelfs_store_cost_usd_total 9.72" in status.metrics_text()


def test_a_folder_of_this_machine_costs_nothing() -> None:
    status = Status(Settings(source="/v"), store=SimpleNamespace(counters=Counters({"get": 9})))
    assert status.value("store_requests") == 9
    assert status.snapshot()["cost_usd"] == 0
    assert not status.offline


def test_watching_or_counting_what_is_no_metric_is_an_error() -> None:
    status = Status()
    with pytest.raises(KeyError):
        status.watch("cache_hit", lambda: 1.0)
    with pytest.raises(KeyError):
        status.count("cache_hit")


def test_labels_may_be_one_name_or_several() -> None:
    status = Status()
    status.watch("cache_hits", lambda: {"memory": 2.0, "disk": 1.0})
    assert status.values("cache_hits") == {("memory",): 2.0, ("disk",): 1.0}
    assert status.value("cache_hits", "disk") == 1
    assert status.value("cache_hits", "none") == 0


def test_what_a_runtime_is_made_of_is_watched() -> None:
    counters = Counters(requests={"get": 2})
    here = SimpleNamespace(hits=5, disk_reads=3, joins=1, requests=2)
    faults = SimpleNamespace(bad=1, dropped=0, errors=0)
    budget = SimpleNamespace(used=10, evictions=4)
    blocks = SimpleNamespace(counters=here, disk=SimpleNamespace(used=20, counters=faults), budget=budget)
    status = Status(source="s3://b", store=SimpleNamespace(counters=counters), blocks=blocks, budget=budget)
    here.hits = 6
    found = status.snapshot()
    assert found["counters"]["store_requests"] == {"get/B": 2}
    assert found["counters"]["cache_hits"] == {"disk": 3, "memory": 6, "shared": 1}
    assert found["counters"]["cache_misses"] == {"disk": 2}
    assert found["counters"]["cache_faults"]["bad"] == 1
    assert found["gauges"]["cache_bytes"] == {"disk": 20, "memory": 10}
    blocks.disk = None
    without = Status(source="/v", blocks=blocks).snapshot()
    assert without["gauges"]["cache_bytes"] == {"memory": 10}
    assert without["counters"]["cache_misses"] == {"memory": 2}


def test_reports_are_bounded_and_the_same_one_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_REPORTED_PATHS", 3)
    status = Status()
    for index in range(5):
        status.report(f"p{index}", "bad")
        status.report(f"p{index}", "bad")
    assert status.notes("p0") == ()
    assert status.notes("p4") == ("bad",)
    for index in range(20):
        status.report("p4", f"{index} " + "x" * 1000)
    notes = status.notes("p4")
    assert len(notes) == telemetry.MAX_REPORTS_PER_PATH
    assert notes[-1].startswith("19 ")
    assert max(map(len, notes)) == telemetry.MAX_MESSAGE
    assert len(status.snapshot()["notes"]) == 3


def test_collisions_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_COLLISIONS", 2)
    status = Status()
    for path in ("a", "b", "c", "a"):
        status.collision(path, "hides")
    assert dict(status.collisions) == {"a": "hides", "b": "hides"}
    assert status.value("collisions") == 2


def test_the_snapshot_is_json_whatever_the_paths_are() -> None:
    ticks = iter([10.0, 12.5, 13.0, 13.0, 13.0])
    plugins = SimpleNamespace(infos=(telemetry.Metric("a", "gauge", "h"), {"name": "p"}))
    store = SimpleNamespace(counters=Counters(), offline=True)
    status = Status(plugins=plugins, store=store, source="/v", version="1.2", clock=lambda: next(ticks))
    status.report("bad\udcff/\x00name", "x")
    status.view_failed("clips")
    found = json.loads(status.snapshot_json())
    assert (found["version"], found["source"], found["offline"]) == ("1.2", "/v", True)
    assert found["uptime_seconds"] == 2.5
    assert found["counters"]["view_failures"] == {"clips": 1}
    assert found["notes"] == {"bad\udcff/\x00name": ["x"]}
    assert found["gauges"]["offline"] == 1
    assert found["plugins"][1] == {"name": "p"}


def test_an_idle_daemon_does_not_carry_prometheus() -> None:
    code = "import sys, vfs.telemetry as t; t.Status().snapshot(); print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
