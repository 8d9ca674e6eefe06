"""The vectorised filter gives the pixels that Pillow's own filter gives."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from vehclass.resizing import by_pillow, by_vectors, resize

SIZES = [(1, 1), (1, 7), (2, 3), (65_500, 1), (1, 65_500), (224, 224), (223, 225), (512, 384), (5_000, 4_000)]


def drawn(size: tuple[int, int], mode: str, *, noise: bool) -> Image.Image:
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    if noise:
        return Image.fromarray(np.random.default_rng(width).integers(0, 256, shape, np.uint8))
    y, x = np.mgrid[0:height, 0:width]
    slope = ((7 * x + 3 * y) // 5 % 256).astype(np.uint8)
    return Image.fromarray(np.stack([slope, 255 - slope, slope // 2], axis=-1) if mode == "RGB" else slope)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("noise", [True, False])
def test_no_pixel_differs_by_more_than_one_grey_level(mode: str, noise: bool) -> None:
    vectors = pytest.importorskip("cykooz_resizer", reason="there is no wheel of cykooz-resizer here") and by_vectors()
    chance = random.Random(20261122)
    for size in [*SIZES, *((chance.randint(1, 900), chance.randint(1, 900)) for _ in range(40))]:
        image = drawn(size, mode, noise=noise)
        for target in ((224, 224), (28, 28), (300, 200)):
            ours, pillows = (np.asarray(one(image, target), int) for one in (vectors, by_pillow))
            assert ours.shape == pillows.shape
            assert np.abs(ours - pillows).max() <= 1, (size, target)


def test_several_threads_get_what_one_gets() -> None:
    images = [drawn((400 + n, 300), "RGB", noise=True) for n in range(40)]
    alone = [np.asarray(resize(image, (96, 96))) for image in images]
    found: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for number in range(first, len(images), 4):
            found[number] = np.asarray(resize(images[number], (96, 96)))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[number], one) for number, one in enumerate(alone))


def test_where_there_is_no_wheel_pillow_does_it() -> None:
    code = (
        "import sys; sys.modules['cykooz_resizer'] = None\n"
        "from vehclass import resizing; print(resizing.resize is resizing.by_pillow)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
