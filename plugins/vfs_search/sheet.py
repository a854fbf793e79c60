"""`contact.jpg`: pictures side by side with a label each. Runs in a worker."""

from __future__ import annotations

import io
from collections.abc import Sequence

CODE = "search.sheet.1"
#: Pictures on one sheet, and side by side.
MOST, ACROSS = 20, 4
_WIDTH, _HEIGHT, _LABEL, _GAP = 240, 135, 16, 4


def draw(pictures: Sequence[bytes], labels: Sequence[str]) -> bytes:
    """A JPEG. pictures: files, b"" where there is none; what cannot be read is grey."""
    from PIL import Image, ImageDraw

    down = -(-len(pictures) // ACROSS)
    across = min(len(pictures), ACROSS)
    cell = (_WIDTH + _GAP, _HEIGHT + _LABEL + _GAP)
    whole = Image.new("RGB", (across * cell[0] + _GAP, down * cell[1] + _GAP), "black")
    pen = ImageDraw.Draw(whole)
    for number, (data, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = _GAP + number % ACROSS * cell[0], _GAP + number // ACROSS * cell[1]
        pen.rectangle((x, y, x + _WIDTH - 1, y + _HEIGHT - 1), fill=(64, 64, 64))
        if data:
            try:
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
                    picture.thumbnail((_WIDTH, _HEIGHT))
                    left, top = (_WIDTH - picture.width) // 2, (_HEIGHT - picture.height) // 2
                    whole.paste(picture.convert("RGB"), (x + left, y + top))
            except (OSError, ValueError, Image.DecompressionBombError):
                label += "  (no picture)"
        pen.text((x + 2, y + _HEIGHT + 2), label, fill="white")
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=85)
    return out.getvalue()
