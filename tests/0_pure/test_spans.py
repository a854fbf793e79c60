"""Layouts: exact sizes, windows that equal slices, merging, fingerprints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs import Extent, Inline, Layout, Span, StoredObject

CONTENT = bytes(range(256)) * 3
OBJECT = StoredObject("games/x.mp4", len(CONTENT), '"v1"', 5)
OTHER = StoredObject("games/y.mp4", len(CONTENT), '"v1"', 5)


def whole(layout: Layout) -> bytes:
    """The bytes a layout stands for."""
    return b"".join(
        span.data if isinstance(span, Inline) else CONTENT[span.offset : span.end] for span in layout.spans
    )


extents = st.tuples(st.sampled_from([OBJECT, OTHER]), st.integers(0, 768), st.integers(0, 768)).map(
    lambda t: Extent(t[0], min(t[1:]), max(t[1:]) - min(t[1:]))
)
layouts = st.lists(st.one_of(st.binary(max_size=20).map(Inline), extents), max_size=12)


@given(layouts, st.integers(0, 3000), st.integers(0, 3000))
def test_a_window_is_the_slice_of_the_whole(spans: list[Span], offset: int, length: int) -> None:
    layout = Layout(spans)
    content = whole(layout)
    assert layout.size == len(content)
    window = layout.window(offset, length)
    assert whole(window) == content[offset : offset + length]
    assert window.size == len(content[offset : offset + length])


@given(layouts)
def test_merging_keeps_the_bytes_and_leaves_no_neighbours_to_join(spans: list[Span]) -> None:
    layout = Layout(spans)
    plain = b"".join(s.data if isinstance(s, Inline) else CONTENT[s.offset : s.end] for s in spans)
    assert whole(layout) == plain
    for before, after in zip(layout.spans, layout.spans[1:], strict=False):
        assert not (isinstance(before, Inline) and isinstance(after, Inline))
        if isinstance(before, Extent) and isinstance(after, Extent) and before.object == after.object:
            assert before.end != after.offset
    assert Layout(layout.spans) == layout


@given(layouts, layouts)
def test_fingerprints_tell_descriptions_apart(first: list[Span], second: list[Span]) -> None:
    one, two = Layout(first), Layout(second)
    assert (one.fingerprint() == two.fingerprint()) == (one == two)


def test_another_version_of_the_object_is_another_fingerprint() -> None:
    replaced = StoredObject(OBJECT.key, OBJECT.size, '"v2"', 5)
    assert Layout.whole(OBJECT).fingerprint() != Layout.whole(replaced).fingerprint()


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (760, 9), (769, 0)])
def test_an_extent_outside_its_object_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Layout((Inline(b"x"), Extent(OBJECT, offset, length or 1)))


def test_negative_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Layout.whole(OBJECT).window(-1, 4)
