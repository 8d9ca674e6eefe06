"""JPEGs of every usual kind, damaged ones, and what libjpeg makes of them at an eighth: what the C decoder is held against.

`python -m tests.jpegs MODULE SEED COUNT` does so with a decoder that was compiled to another place.
"""

import importlib.util
import io
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Decode = Callable[[bytes, int, int], bytes | None]
MOST_PIXELS = 4_000_000  # a damaged header may claim any size


def picture(chance: random.Random, mode: str) -> Image.Image:
    """Waves, noise or hard edges, of any small size."""
    width, height = chance.randint(9, 200), chance.randint(9, 200)
    shape = (height, width, 3) if mode == "RGB" else (height, width, 1)
    numbers = np.random.default_rng(chance.getrandbits(32))
    y, x = np.mgrid[0:height, 0:width]
    waves = 128 + 60 * (np.sin(x / chance.uniform(2, 40)) + np.cos(y / chance.uniform(2, 40)))
    pixels = np.broadcast_to(waves[..., None], shape).copy()
    kind = chance.randrange(4)
    if kind == 1:
        pixels += numbers.normal(0, chance.uniform(5, 80), shape)
    elif kind == 2:
        pixels = numbers.integers(0, 256, shape)
    elif kind == 3:
        squares = numbers.integers(0, 2, (-(-height // 4), -(-width // 4), shape[2]))
        pixels = 255 * np.kron(squares, np.ones((4, 4, 1)))[:height, :width]
    drawn = np.clip(pixels, 0, 255).astype(np.uint8)
    return Image.fromarray(drawn if mode == "RGB" else drawn[..., 0])


def encoded(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def usual(chance: random.Random) -> bytes:
    """A baseline JPEG, grey or in colour, of any quality and subsampling, with and without restarts."""
    mode = chance.choice(["RGB", "RGB", "RGB", "L"])
    options: dict[str, Any] = {"quality": chance.choice([1, 10, 50, 75, 90, 95, 100])}
    if mode == "RGB":
        options["subsampling"] = chance.choice(["4:4:4", "4:2:2", "4:2:0", "4:2:0"])
    if chance.random() < 0.3:
        options["optimize"] = True
    if chance.random() < 0.3:
        options["restart_marker_blocks"] = chance.randint(1, 40)
    elif chance.random() < 0.2:
        options["restart_marker_rows"] = chance.randint(1, 3)
    image = picture(chance, mode)
    while True:
        try:
            return encoded(image, **options)
        except OSError:  # noise at the highest quality may not fit in Pillow's buffer
            options["quality"] -= 5


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The same with something cut off, put in, left out or changed, half of the time in the headers."""
    out = bytearray(data)
    kind, at = chance.random(), chance.randrange(len(data))
    if kind < 0.1:
        del out[at:]
    elif kind < 0.2:
        out[at:at] = chance.randbytes(chance.randint(1, 4))
    elif kind < 0.3:
        del out[at : at + chance.randint(1, 4)]
    else:
        end = len(out) if chance.random() < 0.5 else min(len(out), 700)
        for _ in range(chance.choice([1, 1, 2, 5])):
            at = chance.randrange(end)
            out[at] = chance.choice([chance.getrandbits(8), out[at] ^ 1 << chance.randrange(8), 0, 255])
    return bytes(out)


def by_libjpeg(image: Image.Image) -> np.ndarray | None:
    """The pixels at an eighth; None when libjpeg refuses it."""
    image.draft(None, (1, 1))
    try:
        return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


def compare(decode: Decode, data: bytes) -> str:
    """How the decoder and libjpeg agree on a JPEG; "wrong" in the word when they do not."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            if width * height > MOST_PIXELS or max(width, height) <= 8:
                return "of no use"
            libjpegs, ours = by_libjpeg(image), decode(data, width, height)
            eighth = (-(-height // 8), -(-width // 8))
            if libjpegs is None:
                return "both refuse" if ours is None else "wrong: libjpeg refuses it"
            if ours is None:
                return "left to libjpeg"
            if libjpegs.shape[:2] != eighth:
                return "of no use"
            if len(ours) != libjpegs.size:
                return "wrong: another size"
            same = np.array_equal(np.frombuffer(ours, np.uint8).reshape(libjpegs.shape), libjpegs)
            return "equal" if same else "wrong: other pixels"
    except Exception:  # Pillow opens no such file, whatever it raises
        decode(data, 100, 100)
        return "not opened"


def main() -> None:
    spec = importlib.util.spec_from_file_location("_jpeg_eighth", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    warnings.simplefilter("ignore")
    chance = random.Random(int(sys.argv[2]))
    found: Counter[str] = Counter()
    while found.total() < int(sys.argv[3]):
        data = usual(chance)
        found[compare(module.decode, data)] += 1
        found.update(compare(module.decode, damaged(chance, data)) for _ in range(20))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
