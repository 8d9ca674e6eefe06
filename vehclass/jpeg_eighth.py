"""A JPEG at an eighth of its width and height, in half the time that libjpeg-turbo takes; the same pixels.

Photos of some 4 megapixels and more are decoded at that scale for a network of 224 x 224, and passing the coefficients
that it does not need is nearly all the work. The code is in C (_jpeg_eighth.c) and is compiled when vehclass is
installed; where no compiler was at hand, libjpeg-turbo decodes everything, and nothing else changes.
"""

from collections.abc import Callable
from typing import Final

Eighth = Callable[[bytes, int, int], bytes | None]


def _compiled() -> Eighth | None:
    try:
        from vehclass._jpeg_eighth import decode
    except ImportError:
        return None
    return decode


decode_eighth: Final = _compiled()
"""RGB or grey pixels, row by row, of a JPEG of this width and height; None for what is to be left to libjpeg.

The sides of what it gives are those of the photo by 8, rounded up. `decode_eighth` is None where it was not compiled.
"""
