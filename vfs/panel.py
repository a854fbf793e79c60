"""The views, asked in turn, each in its own try: one that fails spoils its own answer alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from vfs.errors import NotFound, ReelfsError, Stale
from vfs.nodes import Node
from vfs.views import Opens, Place, Reserves, View

log = logging.getLogger("vfs.panel")


class Reports(Protocol):
    """Where the tree says what an operator should know (`telemetry.Status` is one)."""

    def report(self, path: str, message: str) -> None:
        """Something about one path: a damaged file, an ignored sidecar."""

    def collision(self, path: str, kind: str) -> None:
        """A derived name that a real key hides."""

    def view_failed(self, view: str) -> None:
        """A view raised something that is not an answer."""


class Panel:
    """All views of a mount, in order."""

    def __init__(self, views: Sequence[View], reports: Reports) -> None:
        self.views = tuple(views)
        self.reports = reports
        #: Names at the root that are a view's own.
        self.reserved = frozenset(n for view in views if isinstance(view, Reserves) for n in view.reserved)

    def of(self, place: Place) -> list[View]:
        """The views that apply to a place."""
        return [view for view in self.views if self._applies(view, place)]

    async def resolve(self, place: Place, name: str) -> Node | None:
        """The first node any view answers with; None when no view knows the name.

        Raises what a view raised when no other answers: its own ReelfsError, or one that stands for any
        other exception. "Not there" yields to anything graver.
        """
        failure: ReelfsError | None = None
        for view in self.of(place):
            try:
                node = await view.resolve(place, name)
            except Exception as error:
                met = self._failed(view, place, error)
                if failure is None or isinstance(failure, NotFound):
                    failure = met
                continue
            if node is not None:
                return node
        if failure is not None:
            raise failure
        return None

    async def entries(self, place: Place) -> tuple[dict[str, Node | None], ReelfsError | None]:
        """All names the views list for a place (the first to name one wins), and the first failure met."""
        merged: dict[str, Node | None] = {}
        failure: ReelfsError | None = None
        for view in self.of(place):
            try:
                listed: Mapping[str, Node | None] = await view.entries(place)
            except Exception as error:
                met = self._failed(view, place, error)
                failure = failure or met
                continue
            for name, node in listed.items():
                merged.setdefault(name, node)
        return merged, failure

    async def is_directory(self, place: Place) -> bool:
        """Whether a file that is shown as a directory can be one: one view that says so is enough.

        Raises what a view that could not tell raised.
        """
        told = [view for view in self.of(place) if isinstance(view, Opens)]
        for view in told:
            if await view.is_directory(place):
                return True
        return not told

    def _applies(self, view: View, place: Place) -> bool:
        try:
            return view.applies(place)
        except Exception as error:
            self._failed(view, place, error)
            return False

    def _failed(self, view: View, place: Place, error: Exception) -> ReelfsError:
        """What an exception of a view means to whoever asked for the path; logged, counted, explained."""
        if isinstance(error, ReelfsError):
            if not isinstance(error, NotFound | Stale):
                self.reports.report(place.path, f"{view.name}: {error}")
            return error
        text = f"{view.name} failed on {place.path or '/'}: {type(error).__name__}: {error}"
        log.error("%s", text, exc_info=error)
        self.reports.view_failed(view.name)
        self.reports.report(place.path, text)
        return ReelfsError(text)
