"""Images for the tests of all image tasks."""

from __future__ import annotations

import io

from tests.zoo import pictures

IMAGES = [*pictures.pictures(16), pictures.jpeg(40, (33, 57), orientation=6), pictures.gif(41)]


def opened(image: bytes):
    """The PIL image that transformers' pipelines take."""
    from PIL import Image

    return Image.open(io.BytesIO(image))
