"""What vehclass decodes unless told otherwise; apart from imaging, so that `--help` need not load Pillow."""

from typing import Final

# What may be decoded on purpose, and Pillow's name for it.
READERS: Final = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "avif": "AVIF",
    "bmp": "BMP",
    "gif": "GIF",
    "tiff": "TIFF",
}
FORMATS: Final = tuple(READERS)
DEFAULT_FORMATS: Final = ("jpeg", "png", "webp")
DEFAULT_MAX_PIXELS: Final = 100_000_000
LOOKS: Final = 20  # at who decodes, in the time that an image may take
