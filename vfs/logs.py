"""The daemon's log: lines for people on a terminal or in a file, JSON for a service manager's journal."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from vfs.config import Settings
from vfs.errors import ConfigError

#: A log file this big is set aside (`.1`) at the next start.
LOG_BYTES = 8 << 20
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: What makes a URL worth stealing, and keys as libraries might print them.
_SECRETS = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)=|Signature=|Authorization: ?|"
    r"(?:secret_access_key|session_token|SecretAccessKey|SessionToken|AWSSecretKey)[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s&\"',)]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Signatures and keys as `...`: a log is read by more people than may read a bucket."""
    return _SECRETS.sub(r"\1...", text)


class Lines(logging.Formatter):
    """One line for people, and a traceback where there is one."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """As text, without secrets."""
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON, without secrets."""
        made = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{made}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if record.exc_info:
            said["traceback"] = without_secrets("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(said)


def wants_json(settings: Settings, environ: Mapping[str, str] = os.environ) -> bool:
    """`log_format`; with `auto`, where stderr is the journal's (`$JOURNAL_STREAM`)."""
    if settings.log_format != "auto":
        return settings.log_format == "json"
    try:
        device, inode = environ.get("JOURNAL_STREAM", "").split(":")
        status = os.fstat(sys.stderr.fileno())
    except (ValueError, OSError):
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


def log_file(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a detached daemon logs: `log_file`, else `$XDG_STATE_HOME/reelfs/MOUNTPOINT.log`."""
    if settings.log_file is not None:
        return settings.log_file
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    name = quote(str(settings.mountpoint).strip("/"), safe="", errors="surrogateescape")[:200]
    return Path(base) / "reelfs" / f"{name}.log"


def prepare_log(path: Path) -> None:
    """Its folder, and room: a big one of earlier mounts is set aside. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"log_file: {path} cannot be written: {error.strerror}") from None


def configure_logging(settings: Settings, *, foreground: bool) -> None:
    """Log to stderr (of a detached daemon: its log file), or to `log_file` in the foreground."""
    handler: logging.Handler = logging.StreamHandler()
    if foreground and settings.log_file is not None:
        prepare_log(settings.log_file)
        handler = logging.FileHandler(settings.log_file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(JsonLines() if wants_json(settings) else Lines())
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    # Libraries say at DEBUG what they send, signatures included.
    for noisy in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(noisy).setLevel(max(logging.INFO, logging.getLogger().level))
    logging.getLogger("pyfuse3").addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """pyfuse3 logs an error when a caller was killed before its answer came: nobody's fault."""
    text = record.getMessage()
    return not ("fuse_reply_* failed" in text and text.endswith("No such file or directory"))
