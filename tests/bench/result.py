"""What a benchmark found: rows of figures, each with its target where it has one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. unit: "" for a count, `x` for a ratio. met: None = no target. exact: counted, not timed."""

    what: str
    value: float
    unit: str = ""
    target: str = ""
    met: bool | None = None
    exact: bool = False

    @property
    def text(self) -> str:
        """The figure with its unit."""
        digits = 0 if self.unit == "" or self.value >= 1000 else 1 if self.value >= 100 else 2
        return f"{self.value:,.{digits}f} {self.unit}".strip()


def at_most(what: str, value: float, limit: float, unit: str = "", *, exact: bool = False) -> Row:
    """A figure that is good when small."""
    return Row(what, value, unit, f"<= {limit:g} {unit}".strip(), value <= limit, exact)


def at_least(what: str, value: float, limit: float, unit: str = "x", *, exact: bool = False) -> Row:
    """A figure that is good when large."""
    return Row(what, value, unit, f">= {limit:g} {unit}".strip(), value >= limit, exact)


def figure(what: str, value: float, unit: str = "") -> Row:
    """A figure without a target."""
    return Row(what, value, unit)


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
