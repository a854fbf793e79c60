"""What a report of pip-audit means: 1 where something is known against a package, 0 where not, or where
nobody could be asked, which is said.

    python scripts/audit_verdict.py REPORT.json STDERR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def verdict(report: str, said: str) -> tuple[int, list[str]]:
    """Exit code and lines. report: pip-audit's JSON, or nothing. said: what it wrote beside it."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        return 0, [f"audit: skipped: no answer about vulnerabilities: {reason[:200]}"]
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return 0, [
            "audit: skipped: the package index here tells nothing of vulnerabilities (PyPI's JSON API)"
        ]
    lines = [
        f"audit: {package['name']} {package['version']}: {found['id']}: mended in "
        f"{', '.join(found.get('fix_versions') or ()) or 'no version yet'}"
        for package in asked
        for found in package["vulns"]
    ]
    bad = len(lines)
    lines += [f"audit: {p['name']}: not asked: {p['skip_reason']}" for p in packages if "skip_reason" in p]
    lines.append(f"audit: {len(asked)} packages asked about, {bad} vulnerabilities known")
    return int(bad > 0), lines


if __name__ == "__main__":
    code, told = verdict(*(Path(path).read_text() for path in sys.argv[1:3]))
    print("\n".join(told))
    sys.exit(code)
