"""What in the log of a daemon is trouble: a line nobody expects fails a test."""

from __future__ import annotations

import re

_TROUBLE = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) |^Traceback |^\w+(\.\w+)*(Error|Warning): ")
#: A worker that was just being started when its daemon was killed finds nothing where its first orders are
#: to be read, and says so on the daemon's standard error, which is the log.
_ORPHAN = re.compile(
    r"^Traceback \(most recent call last\):\n(?:  .*\n)*EOFError: Ran out of input\n?", re.MULTILINE
)


def troubles(text: str, *, killed: bool = False) -> list[str]:
    """The lines of a log that are warnings or worse, or of tracebacks. killed: whether its daemon was."""
    text = _ORPHAN.sub("", text) if killed else text
    return [line for line in text.splitlines() if _TROUBLE.search(line)]
