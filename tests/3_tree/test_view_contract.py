"""`ViewContract` passes for a right view, and each of its tests fails for one that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from vfs import Bytes, Directory, Inline, Layout, Node, Place, Spliced, View
from vfs.pytest_plugin import ExpectedLogs
from vfs.testing import ViewContract

OBJECTS = {"a.txt": b"alpha", "notes/b.txt": b"beta " * 1000, "notes/other.bin": b"\0" * 10}


class Halves:
    """Lists `first.half` (spliced), `upper.txt` (made) and a folder of both; resolves `N.cut`."""

    name = "halves"

    def applies(self, place: Place) -> bool:
        return not place.is_folder and place.name.endswith(".txt")

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        return {"first.half": self._half(place), "upper.txt": None, "both": self._both(place)}

    async def resolve(self, place: Place, name: str) -> Node | None:
        stem, _, kind = name.partition(".")
        if kind == "cut" and stem.isdigit():
            return Spliced(layout=Layout((place.extent(0, min(int(stem), place.size)), Inline(b"!"))))
        listed = {"first.half": self._half, "upper.txt": self._upper, "both": self._both}
        return listed[name](place) if name in listed else None

    def _half(self, place: Place) -> Node:
        return Spliced(layout=Layout((place.extent(0, place.size // 2),)))

    def _upper(self, place: Place) -> Node:
        async def produce() -> bytes:
            return (await place.read(0, place.size)).upper()

        return Bytes(produce=produce, version=f"upper {place.version}", size=place.size)

    def _both(self, place: Place) -> Node:
        async def entries() -> Mapping[str, Node | None]:
            return {"half": self._half(place), "upper": self._upper(place)}

        return Directory(entries=entries)


class TestRightView(ViewContract):
    objects = OBJECTS
    names = {"a.txt": ["3.cut", "5.cut"], "notes/b.txt": ["4000.cut"]}  # noqa: RUF012

    def views(self) -> Iterable[View]:
        return [Halves()]


def contract(view: type[Halves]) -> ViewContract:
    class Case(ViewContract):
        objects = OBJECTS

        def views(self) -> Iterable[View]:
            return [view()]

    return Case()


def test_a_view_that_opens_files_to_see_whether_it_applies(tmp_path: Path) -> None:
    class Opens(Halves):
        def applies(self, place: Place) -> bool:
            return super().applies(place) and not list(tmp_path.iterdir())

    with pytest.raises(AssertionError, match=r"os\.(listdir|scandir)"):
        contract(Opens).test_applies_by_name_and_type_only()


def test_a_view_that_fits_nothing() -> None:
    class Never(Halves):
        def applies(self, place: Place) -> bool:
            return False

    with pytest.raises(AssertionError, match="fit no view"):
        contract(Never).test_applies_by_name_and_type_only()


def test_a_listing_that_promises_too_much() -> None:
    class Promises(Halves):
        async def entries(self, place: Place) -> Mapping[str, Node | None]:
            return {**await super().entries(place), "both": self._half(place)}

    with pytest.raises(AssertionError, match="both"):
        contract(Promises).test_every_listed_name_resolves_to_what_is_listed()


def test_a_listing_of_another_size() -> None:
    class Grows(Halves):
        async def entries(self, place: Place) -> Mapping[str, Node | None]:
            return {"first.half": Spliced(layout=Layout((place.extent(0, 1),)))}

    with pytest.raises(AssertionError, match="first"):
        contract(Grows).test_every_listed_name_resolves_to_what_is_listed()


def test_a_listing_that_reads_each_time() -> None:
    class Reads(Halves):
        async def entries(self, place: Place) -> Mapping[str, Node | None]:
            listed = await super().entries(place)
            return {**listed, f"{next(COUNT)}.cut": None}

    with pytest.raises(AssertionError):
        contract(Reads).test_listing_reads_no_media_twice()


COUNT = itertools.count()


def test_a_size_that_is_not_the_size() -> None:
    class Lies(Halves):
        def _upper(self, place: Place) -> Node:
            async def produce() -> bytes:
                return b"short"

            return Bytes(produce=produce, version=f"upper {place.version}", size=place.size)

    with pytest.raises(Exception, match="bytes were made where"):
        contract(Lies).test_sizes_are_exact()


def test_bytes_that_are_not_a_function_of_the_version() -> None:
    class Counts(Halves):
        def _upper(self, place: Place) -> Node:
            async def produce() -> bytes:
                return b"%09d" % next(COUNT)

            return Bytes(produce=produce, version=f"upper {place.version}")

    with pytest.raises(AssertionError):
        contract(Counts).test_the_same_versions_are_the_same_bytes()


def test_a_version_that_forgets_its_source() -> None:
    class Forgets(Halves):
        def _upper(self, place: Place) -> Node:
            node = super()._upper(place)
            assert isinstance(node, Bytes)
            return Bytes(produce=node.produce, version="upper")

    with pytest.raises(AssertionError, match="upper"):
        contract(Forgets).test_another_source_is_another_version()


def test_an_exception_that_is_not_ours(expected_logs: ExpectedLogs) -> None:
    class Stumbles(Halves):
        async def resolve(self, place: Place, name: str) -> Node | None:
            if name == "5s-":
                raise ValueError("a name I do not like")
            return await super().resolve(place, name)

    with pytest.raises(ValueError, match="do not like"):
        contract(Stumbles).test_unknown_names_are_not_found()
