"""Which request gets which fault: rules, and what was asked of the proxy, counted."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

#: How far the fault `shift` moves a range: the distance users of R2 have reported.
SHIFT = 64 * 1024
#: Requests remembered in full, the newest.
LOGGED = 100_000

FAULTS = {
    "status": "answer with `status` (and `headers`, `retry_after`) without asking the server",
    "reset": "TCP reset: before the answer, or after `at` bytes of the body",
    "truncate": "close the connection after `at` bytes of the body (default: half)",
    "hang": "say nothing more, before the answer or after `at` bytes, until `release()` or the client leaves",
    "flip": "flip one bit of the byte `at` of the body (default: the middle)",
    "shift": "serve the range 64 KiB away, and say so in Content-Range",
    "shift-silently": "serve the range 64 KiB away under the Content-Range that was asked for",
    "range": "the right body under a Content-Range that is one byte off",
    "etag": "the right body under another ETag",
    "header": "the right body with `headers` set (None removes one) and, if given, another `status`",
    "whole": "ignore the Range header, as servers without ranges do",
    "delay": "answer `seconds` later",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A fault and the requests it hits. See `FAULTS` for the names.

    kind: `get`, `head`, `list`, `put`, `delete`, `post` or `any`. key: a pattern as in fnmatch, of
    `bucket/key` or of the key alone. nth: which of the matching requests, counted from 1 (None = each).
    times: fires at most so often. probability: of each match, drawn with the seed of the proxy.
    """

    fault: str
    kind: str = "any"
    key: str = "*"
    nth: tuple[int, ...] | None = None
    times: int | None = None
    probability: float = 1.0
    status: int = 503
    retry_after: str | None = None
    code: str | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    at: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"no such fault: {self.fault}; there are {', '.join(FAULTS)}")

    def hits(self, kind: str, path: str) -> bool:
        """True for a request this rule is about, before counting."""
        if self.kind not in ("any", kind):
            return False
        return fnmatchcase(path, self.key) or fnmatchcase(path.partition("/")[2], self.key)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rule:
        """What `to_dict` wrote."""
        nth = values.get("nth")
        return cls(**{**values, "nth": None if nth is None else tuple(nth)})


class Rules:
    """The rules in force; the first that fires for a request wins. Safe to use from many threads."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._rules: list[Rule] = []
        self._matched: Counter[int] = Counter()
        self._fired: Counter[int] = Counter()

    def add(self, rule: Rule) -> None:
        """One more, after the others."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """No faults any more."""
        with self._lock:
            self._rules.clear()
            self._matched.clear()
            self._fired.clear()

    def choose(self, kind: str, path: str) -> Rule | None:
        """The rule that fires for this request; every rule that matches counts it."""
        chosen: Rule | None = None
        with self._lock:
            for number, rule in enumerate(self._rules):
                if not rule.hits(kind, path):
                    continue
                self._matched[number] += 1
                if chosen is None and self._fires(number, rule):
                    self._fired[number] += 1
                    chosen = rule
        return chosen

    def _fires(self, number: int, rule: Rule) -> bool:
        if rule.nth is not None and self._matched[number] not in rule.nth:
            return False
        if rule.times is not None and self._fired[number] >= rule.times:
            return False
        return rule.probability >= 1.0 or self._random.random() < rule.probability


def kind_of(method: str, target: str) -> str:
    """`get`, `head`, `list`, `put`, `delete` or `post`."""
    path, _, query = target.partition("?")
    if method == "GET" and (
        path.endswith("/")
        or any(word in query for word in ("list-type=", "delimiter=", "prefix=", "max-keys="))
    ):
        return "list"
    return method.lower()


def path_of(target: str) -> str:
    """`bucket/key` as text: unquoted, no leading slash, no query."""
    return unquote(target.partition("?")[0], errors="surrogateescape").lstrip("/")


@dataclass(slots=True)
class Logged:
    """One request as it came, and what was sent back so far.

    status: 0 = not answered. sent: bytes of body. fault: "" = none. All of it is noted before the bytes are
    on their way: whoever has read an answer finds it here.
    """

    kind: str
    path: str
    range: str
    fault: str = ""
    status: int = 0
    sent: int = 0


@dataclass(slots=True)
class Counts:
    """requests: by kind. body: bytes of answers by kind (of requests for `put`). faults: by name."""

    requests: dict[str, int] = field(default_factory=dict)
    body: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    connections: int = 0

    @property
    def total(self) -> int:
        """Requests of every kind."""
        return sum(self.requests.values())


class Ledger:
    """Counts and the log, kept by the connections' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._body: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._connections = 0
        self._log: list[Logged] = []

    def connected(self) -> None:
        """A client connected."""
        with self._lock:
            self._connections += 1

    def asked(self, entry: Logged) -> None:
        """A request came; noted before it is answered, so that a hanging one is seen."""
        with self._lock:
            self._requests[entry.kind] += 1
            if entry.fault:
                self._faults[entry.fault] += 1
            self._log.append(entry)
            del self._log[:-LOGGED]

    def passed(self, entry: Logged, count: int) -> None:
        """Bytes of body are about to go through."""
        with self._lock:
            self._body[entry.kind] += count
            entry.sent += count

    def counts(self) -> Counts:
        """A copy of the counts so far."""
        with self._lock:
            return Counts(dict(self._requests), dict(self._body), dict(self._faults), self._connections)

    def log(self) -> list[Logged]:
        """A copy of the log so far, in the order the requests came."""
        with self._lock:
            return [replace(entry) for entry in self._log]

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            for counter in (self._requests, self._body, self._faults):
                counter.clear()
            self._connections = 0
            self._log.clear()
