"""docs/grafana.json and the alerts of docs/metrics.md name metrics that there are."""

from __future__ import annotations

import json
import re

from tests.docs.doc_pages import ROOT
from vfs.telemetry import METRICS

NAMES = {m.full_name for m in METRICS if m.kind != "histogram"} | {
    f"{m.full_name}_{part}" for m in METRICS if m.kind == "histogram" for part in ("bucket", "sum", "count")
}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"reelfs_\w+", expression)}
    assert len(named) > 12
    assert named - NAMES == set()
    for expression in asked:
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            (metric, *_) = re.findall(r"reelfs_\w+", expression)
            known = next(m for m in METRICS if metric.startswith(m.full_name))
            assert set(labels.replace(" ", "").split(",")) <= {*known.labels, "le"}


def test_the_alerts_name_metrics_that_there_are() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text().partition("## Alerts")[2]
    named = set(re.findall(r"reelfs_\w+", text))
    assert named
    assert named - NAMES == set()
