"""Changes of a bucket as they happen: R2's notifications, pulled over HTTP from a Cloudflare queue.

R2 sends a message to a queue for each object that is created or deleted (`{account, action, bucket,
object: {key, size, eTag}, eventTime}`, R2 event notifications); a consumer outside of Workers pulls
batches and says which it has dealt with (Cloudflare Queues, pull consumers). Each event refreshes what the
mount knows of that key, at once and whatever `dir_ttl` says. A message is acknowledged only after that; one
that cannot be read is, too, since it would come again for ever.

Set `events.queue` to `https://api.cloudflare.com/client/v4/accounts/ACCOUNT/queues/QUEUE`; the token is the
variable `R2_QUEUE_TOKEN`, in the environment or the credentials file.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from vfs.changes import Changes
from vfs.storage.base import prefix_of
from vfs.units import visible

log = logging.getLogger("vfs.events")

TOKEN = "R2_QUEUE_TOKEN"
#: Messages asked for at once: Cloudflare gives 100 at most. What is not acknowledged in time comes again.
BATCH = 100
VISIBILITY_MS = 30_000
#: Seconds between two looks at an empty queue, and the longest after failures.
PAUSE, LONGEST_PAUSE = 2.0, 60.0
REQUEST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Event:
    """One change. action: as R2 names it (`PutObject`, ...). key: below the mounted prefix."""

    action: str
    key: str
    size: int | None
    version: str
    time: str

    @property
    def removed(self) -> bool:
        """Whether the object is gone."""
        return "Delet" in self.action

    def to_dict(self) -> dict[str, Any]:
        """For `reelfs watch`."""
        return {
            "action": "removed" if self.removed else "stored",
            "path": self.key,
            "size": self.size,
            "etag": self.version,
            "time": self.time,
            "source": "queue",
        }


def parse(body: object, bucket: str, prefix: str) -> Event | None:
    """The event of a message of ours; None for one of another bucket, prefix or kind.

    body: JSON, JSON as text, or that in base64, as a queue gives it by its content type.
    """
    try:
        told = body
        if isinstance(told, str):
            try:
                told = json.loads(told)
            except ValueError:
                told = json.loads(base64.b64decode(told, validate=True))
        if not isinstance(told, Mapping) or told.get("bucket") != bucket:
            return None
        found = told["object"]
        key, size = found["key"], found.get("size")
        if not isinstance(key, str) or not key.startswith(prefix) or key == prefix:
            return None
        return Event(
            str(told.get("action", "")),
            key[len(prefix) :],
            size if isinstance(size, int) else None,
            str(found.get("eTag", "")),
            str(told.get("eventTime", "")),
        )
    except (ValueError, KeyError, TypeError, binascii.Error, UnicodeDecodeError):
        return None


class Queue:
    """A pull consumer. Raises OSError for what is no usable answer.

    token: asked for at each request, so that one that was changed is used from then on; "" = there is none.
    """

    def __init__(self, url: str, token: Callable[[], str]) -> None:
        self._url = url.rstrip("/")
        self._token = token

    async def pull(self) -> list[tuple[str, object]]:
        """The next messages: lease and body of each."""
        asked = {"batch_size": BATCH, "visibility_timeout_ms": VISIBILITY_MS}
        result = await self._post("pull", asked)
        messages = result.get("messages") if isinstance(result, dict) else None
        return [(str(m["lease_id"]), m.get("body")) for m in messages or () if "lease_id" in m]

    async def acknowledge(self, leases: list[str]) -> None:
        """They are dealt with and do not come again."""
        await self._post("ack", {"acks": [{"lease_id": lease} for lease in leases], "retries": []})

    async def _post(self, what: str, asked: Mapping[str, Any]) -> Any:
        token = self._token()
        if not token:
            raise OSError(f"no token: set {TOKEN}")
        request = urllib.request.Request(
            f"{self._url}/messages/{what}",
            data=json.dumps(asked).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        return await trio.to_thread.run_sync(partial(_exchange, request), abandon_on_cancel=True)


def _exchange(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"HTTP {error.code}") from None
    except ValueError as error:
        raise OSError(f"no JSON: {error}") from None
    if not isinstance(told, dict) or not told.get("success"):
        raise OSError(f"refused: {told.get('errors') if isinstance(told, dict) else told}")
    return told.get("result")


async def follow(queue: Queue, url: str, changes: Changes, *, pause: float = PAUSE) -> None:
    """Refresh what each event names, until cancelled. url: of the mounted store."""
    bucket, prefix = url.partition("://")[2].partition("/")[0], prefix_of(url)
    wait, said = pause, ""
    while True:
        try:
            messages = await queue.pull()
            for _, body in messages:
                if (event := parse(body, bucket, prefix)) is not None:
                    changes.happened(event.key, event.to_dict())
            if messages:
                await queue.acknowledge([lease for lease, _ in messages])
                wait = pause
                continue
            wait, said = pause, ""
        except (OSError, KeyError, TypeError) as error:
            wait = min(LONGEST_PAUSE, wait * 2)
            if str(error) != said:  # once for each reason: it is asked again for as long as the mount lives
                log.warning(
                    "events.queue: %s; it is asked again, every %.0f s at last",
                    visible(str(error)),
                    LONGEST_PAUSE,
                )
                said = str(error)
        await trio.sleep(wait)
