"""What a mount knows of itself: counters, reports, collisions, cost. One table defines every metric.

Counting is plain arithmetic on the trio thread (or under the GIL from a worker thread: a lost increment
there is possible in theory and harmless); prometheus-client is imported when the text is asked for, so an
idle daemon does not carry it. Metrics whose figures live elsewhere (the store's counters, the caches) are
watched: asked for at the moment of the question.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from vfs.units import human_size, visible

if TYPE_CHECKING:
    from vfs.config import Settings

log = logging.getLogger("vfs.telemetry")

#: R2, USD per million operations, standard storage class (Cloudflare's R2 pricing page); each GET and HEAD
#: is Class B; DELETE, what ends an upload in vain, and egress are free; all else is Class A.
CLASS_A_USD_PER_MILLION = 4.50
CLASS_B_USD_PER_MILLION = 0.36
CLASSES: Mapping[str, str] = {"get": "B", "head": "B", "delete": "free", "abort_upload": "free"}

#: Reports kept: so many paths, each with its newest messages. An operator reads a few; a hostile bucket
#: must not fill memory.
MAX_REPORTED_PATHS = 1000
MAX_REPORTS_PER_PATH = 8
MAX_COLLISIONS = 1000
MAX_MESSAGE = 500

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric: its name (without `reelfs_`), kind, what it counts, and its labels in order."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus shows it."""
        return f"reelfs_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS: tuple[Metric, ...] = (
    Metric("store_requests", "counter", "Requests to the store, retries included", ("operation", "class")),
    Metric("store_retries", "counter", "Requests that were tried again"),
    Metric("store_errors", "counter", "Requests that failed, by cause", ("cause",)),
    Metric("store_bytes_read", "counter", "Bytes of bodies read from the store"),
    Metric("store_cost_usd", "counter", "Estimated price of the requests at R2's list prices, in USD"),
    Metric("cache_hits", "counter", "Reads answered by a cache, or by another's request", ("tier",)),
    Metric("cache_misses", "counter", "Reads that had to ask the store", ("tier",)),
    Metric("cache_evictions", "counter", "Entries thrown out for lack of room", ("tier",)),
    Metric("cache_bytes", "gauge", "Bytes held by a cache", ("tier",)),
    Metric(
        "cache_faults",
        "counter",
        "Disk cache: bad (damaged, not served), dropped (not kept), errors",
        ("cause",),
    ),
    Metric("errors", "counter", "Operations answered with an error, by errno name", ("errno",)),
    Metric("view_failures", "counter", "Views that raised what is not an answer", ("view",)),
    Metric("reports", "counter", "Reports about single paths (ignored sidecars, damaged files)"),
    Metric("collisions", "gauge", "Derived names hidden by real keys"),
    Metric("worker_jobs", "counter", "Decoding jobs by outcome: ok, failed, died, overran", ("outcome",)),
    Metric("worker_restarts", "counter", "Decoding processes that died or were killed"),
    Metric("loop_stall_seconds", "histogram", "How long the event loop did not turn"),
    Metric("fuse_seconds", "histogram", "Time to answer the kernel, by operation", ("operation",)),
    Metric("fuse_bytes_read", "counter", "Bytes given to the kernel"),
    Metric("fuse_bytes_written", "counter", "Bytes taken from the kernel"),
    Metric("queue_files", "gauge", "Names that wait to be sent to the store"),
    Metric("queue_bytes", "gauge", "Bytes that wait to be sent to the store"),
    Metric("queue_age_seconds", "gauge", "How long the oldest of them waits"),
    Metric("uploaded_bytes", "counter", "Bytes of files sent to the store"),
    Metric("program_bytes_read", "counter", "Bytes given to programs, by their name", ("program",)),
    Metric("crawler_opens", "counter", "Files opened by crawlers, by program", ("program",)),
    Metric("crawler_refusals", "counter", "Reads of crawlers beyond their budget, by program", ("program",)),
    Metric("today", "gauge", "Since midnight UTC: class_a and class_b operations, egress bytes", ("figure",)),
    Metric("limit_reached", "gauge", "1 where a limit of the day is reached: reads fail (alert)", ("limit",)),
    Metric("today_cost_usd", "gauge", "Price of the requests since midnight UTC, in USD"),
    Metric("open_files", "gauge", "Handles that are open now"),
    Metric("uptime_seconds", "gauge", "Seconds since the mount started"),
    Metric("offline", "gauge", "1 while the store cannot be reached"),
)

#: Upper bounds in seconds: a cached answer is tens of microseconds, a cold read tens of milliseconds, the
#: deadline 30 seconds.
BUCKETS: tuple[float, ...] = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation, in seconds."""
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)


Labels = tuple[str, ...]
Sampled = float | Mapping[str, float] | Mapping[Labels, float]
Sample = Callable[[], Sampled]


class StoreCounters(Protocol):
    """What the guarded store counts: requests sent by operation (`get`, `head`, `list`), bytes, errors."""

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests sent, by operation."""

    @property
    def bytes_read(self) -> int:
        """Bytes of bodies."""

    @property
    def retries(self) -> int:
        """Requests that were tried again."""

    @property
    def errors(self) -> Mapping[str, int]:
        """Failures by cause."""


class Plugins(Protocol):
    """Who knows the plugins."""

    @property
    def infos(self) -> Sequence[Any]:
        """What is known of each."""


class Status:
    """The state of one mount, for `.reelfs/`, `reelfs explain` and Prometheus."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Plugins | None = None,
        store: Any = None,
        blocks: Any = None,
        budget: Any = None,
        source: str | None = None,
        version: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.source = source if source is not None else (settings.source if settings else "")
        self.version = version
        self._plugins = plugins
        self._store = store
        self._clock = clock
        self._started = clock()
        self._started_at = time.time()
        self._values: dict[str, dict[Labels, float]] = {m.name: {} for m in METRICS if m.kind != "histogram"}
        self._histograms: dict[str, dict[Labels, Histogram]] = {
            m.name: {} for m in METRICS if m.kind == "histogram"
        }
        #: Further files of `.reelfs/`, by name.
        self.files: dict[str, Callable[[], bytes]] = {}
        self._watched: dict[str, Sample] = {
            "uptime_seconds": self.uptime,
            "offline": lambda: float(self.offline),
            "collisions": lambda: float(len(self._collisions)),
            "store_cost_usd": self.cost_usd,
        }
        self._notes: OrderedDict[str, deque[str]] = OrderedDict()
        self._collisions: OrderedDict[str, str] = OrderedDict()
        if store is not None:
            self.watch_store(store.counters)
        if blocks is not None:
            self._watch_blocks(blocks)
        if budget is not None:
            self.watch("cache_evictions", lambda: {"memory": budget.evictions})

    # -- counting ---------------------------------------------------------------------------------------

    def count(self, metric: str, *labels: str, by: float = 1) -> None:
        """Add to a counter of `METRICS`; its labels in their order."""
        values = self._values[metric]
        values[labels] = values.get(labels, 0) + by

    def observe(self, metric: str, seconds: float, *labels: str) -> None:
        """One observation of a histogram of `METRICS`."""
        histograms = self._histograms[metric]
        histogram = histograms.get(labels)
        if histogram is None:
            histogram = histograms[labels] = Histogram()
        histogram.observe(seconds)

    def add_file(self, name: str, make: Callable[[], bytes]) -> None:
        """One more file of `.reelfs/`, made anew at each open."""
        self.files[name] = make

    def watch(self, metric: str, sample: Sample) -> None:
        """Take a counter or gauge from `sample()` when asked: a number, or numbers by label(s)."""
        if metric not in self._values:
            raise KeyError(metric)
        self._watched[metric] = sample

    def watch_store(self, counters: StoreCounters) -> None:
        """Take the store's figures from its own counters."""

        def requests() -> Mapping[Labels, float]:
            return {(op, class_of(op)): number for op, number in counters.requests.items()}

        self.watch("store_requests", requests)
        self.watch("store_errors", lambda: dict(counters.errors))
        self.watch("store_bytes_read", lambda: counters.bytes_read)
        self.watch("store_retries", lambda: counters.retries)

    def _watch_blocks(self, blocks: Any) -> None:
        """Take the figures of the block cache: memory first, then disk, then the store."""
        here, disk = blocks.counters, blocks.disk
        self.watch("cache_hits", lambda: {"memory": here.hits, "disk": here.disk_reads, "shared": here.joins})
        self.watch("cache_misses", lambda: {"disk" if disk else "memory": here.requests})
        self.watch(
            "cache_bytes", lambda: {"memory": blocks.budget.used} | ({"disk": disk.used} if disk else {})
        )
        if disk is not None:
            self.watch(
                "cache_faults",
                lambda: {name: getattr(disk.counters, name) for name in ("bad", "dropped", "errors")},
            )

    def view_failed(self, view: str) -> None:
        """A view raised something that is not an answer."""
        self.count("view_failures", view)

    def values(self, metric: str) -> dict[Labels, float]:
        """The figures of a counter or gauge by labels; a watched one that fails to answer has none."""
        sample = self._watched.get(metric)
        if sample is None:
            return dict(self._values[metric])
        found = sample()
        if isinstance(found, Mapping):
            return {(k,) if isinstance(k, str) else k: v for k, v in found.items()}
        return {(): found}

    def value(self, metric: str, *labels: str) -> float:
        """One figure; without labels the sum of all."""
        values = self.values(metric)
        return values.get(labels, 0) if labels else sum(values.values())

    # -- what operators are told ------------------------------------------------------------------------

    def report(self, path: str, message: str) -> None:
        """Remember something about one path; the same message again is kept once. Bounded."""
        self.count("reports")
        notes = self._notes.pop(path, None) or deque(maxlen=MAX_REPORTS_PER_PATH)
        text = _clip(message)
        if text not in notes:
            notes.append(text)
            log.info("%s: %s", visible(path), visible(text))
        self._notes[path] = notes
        while len(self._notes) > MAX_REPORTED_PATHS:
            self._notes.popitem(last=False)

    @property
    def plugins(self) -> Sequence[Any]:
        """What is known of each plugin (`plugins.PluginInfo`)."""
        return self._plugins.infos if self._plugins is not None else ()

    @property
    def reported(self) -> Mapping[str, Sequence[str]]:
        """All paths with reports, and these."""
        return {path: tuple(notes) for path, notes in self._notes.items()}

    def notes(self, path: str) -> tuple[str, ...]:
        """What was reported about a path, oldest first."""
        return tuple(self._notes.get(path, ()))

    def collision(self, path: str, kind: str) -> None:
        """A derived name that a real key hides. Bounded."""
        if path in self._collisions or len(self._collisions) < MAX_COLLISIONS:
            self._collisions[path] = _clip(kind)

    @property
    def collisions(self) -> Mapping[str, str]:
        """Path -> what hides what."""
        return self._collisions

    def uptime(self) -> float:
        """Seconds since the mount started."""
        return self._clock() - self._started

    @property
    def offline(self) -> bool:
        """True while the store cannot be reached: it says so itself (`offline`), where it knows."""
        return bool(getattr(self._store, "offline", False))

    def cost_usd(self) -> float:
        """The requests so far at R2's list prices, no free tier counted; a folder of this machine is free."""
        if self.settings is not None and self.settings.is_local:
            return 0.0
        return cost_usd(self._by_class())

    def watch_usage(self, usage: Any) -> None:
        """Take the figures of the day from its meter."""
        self.watch("today", lambda: usage.today)
        self.watch("limit_reached", lambda: usage.reached)

        def cost() -> float:
            if self.settings is not None and self.settings.is_local:
                return 0.0
            today = usage.today
            return cost_usd({"A": today["class_a"], "B": today["class_b"]})

        self.watch("today_cost_usd", cost)

    def watch_readers(self, readers: Any) -> None:
        """Take the figures of programs from who knows them."""
        self.watch("program_bytes_read", lambda: dict(readers.by_program))
        self.watch("crawler_opens", lambda: dict(readers.crawled))
        self.watch("crawler_refusals", lambda: dict(readers.refused))

    def _by_class(self) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        for (_, price_class), number in self.values("store_requests").items():
            totals[price_class] = totals.get(price_class, 0) + number
        return totals

    # -- answers ----------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "version": self.version or _version(),
            "source": self.source,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_at)),
            "uptime_seconds": round(self.uptime(), 3),
            "offline": self.offline,
            "cost_usd": round(self.cost_usd(), 9),
            "counters": {m.name: self._figures(m) for m in METRICS if m.kind == "counter"},
            "gauges": {m.name: self._figures(m) for m in METRICS if m.kind == "gauge"},
            "latency": {m.name: self._summaries(m) for m in METRICS if m.kind == "histogram"},
            "plugins": [_plain(plugin) for plugin in self.plugins],
            "collisions": dict(self._collisions),
            "notes": {path: list(notes) for path, notes in self._notes.items()},
        }

    def line(self) -> str:
        """The state in one line, for a service manager."""
        read, store = self.value("fuse_bytes_read"), self.value("store_requests")
        state = "OFFLINE" if self.offline else "online"
        waiting = f", {self.value('queue_files'):.0f} files queued" if self.value("queue_files") else ""
        return (
            f"{state}, {self.value('open_files'):.0f} open files, {human_size(read)} read, "
            f"{store:.0f} requests, {self.cost_usd():.6f} USD{waiting}"
        )

    def snapshot_json(self) -> bytes:
        """`snapshot` as indented JSON; a path that is no UTF-8 is escaped, so that any parser reads it."""
        return (json.dumps(self.snapshot(), indent=2, sort_keys=False) + "\n").encode("ascii")

    def _figures(self, metric: Metric) -> Any:
        values = self.values(metric.name)
        if not metric.labels:
            return values.get((), 0)
        return {"/".join(labels): number for labels, number in sorted(values.items())}

    def _summaries(self, metric: Metric) -> Any:
        table = {
            "/".join(labels): {"count": h.count, "mean": round(h.total / h.count, 6)}
            for labels, h in sorted(self._histograms[metric.name].items())
        }
        return table if metric.labels else table.get("", {"count": 0, "mean": 0.0})

    def metrics_text(self) -> str:
        """All metrics in the Prometheus text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry).decode()

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and text of all metrics, as an HTTP client accepts them (OpenMetrics, too)."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry()
        registry.register(self)
        encode, kind = choose_encoder(accept)
        return kind, encode(registry)

    def collect(self) -> Iterable[Any]:
        """The metric families, for a prometheus-client registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in METRICS:
            name = f"reelfs_{metric.name}"
            if metric.kind == "histogram":
                family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
                for labels, histogram in self._histograms[metric.name].items():
                    family.add_metric(labels, _cumulative(histogram), histogram.total)
                yield family
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            simple = kind(name, metric.help, labels=metric.labels)
            values = self.values(metric.name)
            if not metric.labels:
                values.setdefault((), 0)
            for labels, number in sorted(values.items()):
                simple.add_metric(labels, number)
            yield simple


def class_of(operation: str) -> str:
    """The price class of what a guarded store does: `A`, `B` or `free`."""
    return CLASSES.get(operation, "A")


def cost_usd(by_class: Mapping[str, float]) -> float:
    """The price in USD of so many requests of each class."""
    return (
        by_class.get("A", 0) * CLASS_A_USD_PER_MILLION + by_class.get("B", 0) * CLASS_B_USD_PER_MILLION
    ) / 1e6


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: each counts all observations up to its bound."""
    buckets, total = [], 0
    for bound, number in zip((*map(str, BUCKETS), "+Inf"), histogram.counts, strict=True):
        total += number
        buckets.append((bound, float(total)))
    return buckets


def _clip(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value if isinstance(value, (dict, list, str, int, float)) else str(value)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reelfs")
    except PackageNotFoundError:
        return "unknown"
