"""What may be written where: the settings `[write]`, asked before anything is changed. Pure."""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Callable, Collection, Iterable

from vfs import names
from vfs.errors import AlreadyThere, BadName, NameTooLong, ReadOnly, Refused
from vfs.storage.base import MAX_KEY
from vfs.storage.localwrite import UPLOADS


class Rules:
    """allow: prefixes that may be written to ("" = all). protect: prefixes, at any depth, whose existing
    objects stay as they are. max_deletes: in a minute (0 = any number). remote: keys must be R2's. prefix: of
    what is mounted in its bucket, which is a part of each key there.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] = ("",),
        protect: Collection[str] = (),
        max_deletes: int = 0,
        remote: bool = True,
        prefix: str = "",
        clock: Callable[[], float],
    ) -> None:
        self._allow = tuple(allow)
        self._protect = tuple(protect)
        self._max_deletes = max_deletes
        self._deletes: deque[float] = deque()
        self._remote = remote
        self._most = MAX_KEY - len(prefix.encode("utf-8", "surrogateescape"))
        self._clock = clock
        #: Names of the root that views keep for themselves: what was stored there could not be seen.
        self.reserved: frozenset[str] = frozenset()

    def allows(self, key: str) -> bool:
        """Whether anything may be created or changed at a key (of a folder: with its slash)."""
        return any(key.startswith(prefix) for prefix in self._allow)

    def reaches(self, folder: str) -> bool:
        """Whether something below a folder may be written."""
        return any(folder.startswith(prefix) or prefix.startswith(folder) for prefix in self._allow)

    def check(self, key: str, *, existing: bool) -> None:
        """Raises ReadOnly outside of `write.allow`, Refused for an existing object of `write.protect`."""
        if not self.allows(key):
            raise ReadOnly(f"{key} is outside of write.allow")
        if existing and self.protects(key):
            raise Refused(f"{key} is kept as it is by write.protect")

    def protects(self, key: str) -> bool:
        """Whether an existing object must stay as it is."""
        return any(f"/{prefix}" in f"/{key}" for prefix in self._protect if prefix)

    def check_name(self, folder: str, name: str, siblings: Iterable[str]) -> None:
        """Before a name is created. Raises BadName, NameTooLong, AlreadyThere (another spelling of one)."""
        if not names.is_component(name) or (not folder and name in (UPLOADS, names.TRASH, *self.reserved)):
            raise BadName(f"{name!r} cannot be a name here")
        if len(name.encode("utf-8", "surrogateescape")) > names.NAME_MAX:
            raise NameTooLong(f"a name of more than {names.NAME_MAX} bytes")
        if not self._remote:
            return
        try:
            self.check_key(f"{folder}{name}")
        except UnicodeEncodeError:
            raise BadName(f"{name!r} is not UTF-8: no key can carry it") from None
        if not name.isascii():
            same = unicodedata.normalize("NFC", name)
            for sibling in siblings:
                if sibling != name and unicodedata.normalize("NFC", sibling) == same:
                    raise AlreadyThere(f"{name!r} is another spelling of {sibling!r}: one object to R2")

    def check_key(self, key: str) -> None:
        """Before something goes there. Raises NameTooLong: it could never be sent."""
        if (room := self.room(key)) < 0:
            raise NameTooLong(f"{key} would be a key of {MAX_KEY - room} bytes; {MAX_KEY} are possible")

    def room(self, key: str) -> int:
        """Bytes that could be added to a key, negative where it is too long."""
        return self._most - len(key.encode("utf-8")) if self._remote else MAX_KEY

    def count_delete(self, key: str) -> None:
        """One more is to be deleted. Raises Refused when it is too many."""
        if not self._max_deletes:
            return
        now = self._clock()
        while self._deletes and now - self._deletes[0] > 60:
            self._deletes.popleft()
        if len(self._deletes) >= self._max_deletes:
            raise Refused(
                f"{key}: {self._max_deletes} files were deleted within a minute, "
                "more are refused until it is over (write.max_deletes_per_minute)"
            )
        self._deletes.append(now)
