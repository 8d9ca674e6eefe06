"""Random views of the same vehicle: mirrored, moved, nearer or farther, in another light, blurred, recompressed.

What happens to a photo is drawn in NumPy from the seed, the epoch and the batch's number, so that training that goes
on after a kill sees what it would have seen; a Keras layer does it to the whole batch inside the network's graph.
"""

import io
from dataclasses import dataclass, replace
from typing import Any, Final

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from vehclass.imaging import Pixels

Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Views:
    """How far views may differ; shares of the side, of one, of the photos."""

    flip: bool = True
    shift: float = 0.08
    zoom: float = 0.12
    stretch: float = 0.08
    degrees: float = 4.0
    exposed: float = 0.0  # at dusk, in a garage, against the light: darker or lighter by far
    brightness: float = 0.15
    contrast: float = 0.2
    saturation: float = 0.3
    blurred: float = 0.3
    recompressed: float = 0.1
    erased: float = 0.1
    mixed: float = 0.0


# Logarithms of the least and the greatest gain: a sixth of the light, half as much again.
EXPOSURES: Final = (-1.8, 0.4)

PRESETS: Final = {
    "none": Views(False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    # Moves by whole pixels only: anything else blurs, and small pictures have no detail to give away.
    "light": Views(
        shift=0.07,
        zoom=0.0,
        stretch=0.0,
        degrees=0.0,
        brightness=0.08,
        contrast=0.1,
        saturation=0.1,
        blurred=0.0,
        recompressed=0.0,
        erased=0.2,
    ),
    "vehicle": Views(),
    "strong": Views(
        shift=0.12,
        zoom=0.2,
        stretch=0.12,
        degrees=6,
        exposed=0.4,
        brightness=0.2,
        contrast=0.3,
        saturation=0.4,
        erased=0.3,
        mixed=0.5,
    ),
}


def views(preset: str, *, flip: bool = True, mixed: float | None = None) -> Views:
    """The views of a preset; never upside down, and mirrored unless the labels know left from right."""
    chosen = PRESETS[preset]
    return replace(chosen, flip=chosen.flip and flip, mixed=chosen.mixed if mixed is None else mixed)


def draw_views(
    rng: np.random.Generator, count: int, size: tuple[int, int], how: Views
) -> tuple[Numbers, Numbers, Numbers]:
    """What happens to each of `count` photos of `size` (width, height).

    Three float32 arrays: projective transforms [n, 8] from places in the view to places in the photo; colour [n, 4]
    (factor, factor of grey, what is added, blur); an erased box [n, 4] (top, left, bottom, right in pixels).
    """
    width, height = size

    def around(most: float) -> NDArray[np.float64]:
        return rng.uniform(-most, most, count)

    zoom, stretch, angle = np.exp(around(how.zoom)), np.exp(around(how.stretch)), np.deg2rad(around(how.degrees))
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0) if how.flip else np.ones(count)
    across, down = mirror * zoom * stretch, zoom / stretch
    a, b = np.cos(angle) * across, -np.sin(angle) * down
    c, d = np.sin(angle) * across, np.cos(angle) * down
    x, y = (width - 1) / 2, (height - 1) / 2  # the middle stays, but for the shift
    zero = np.zeros(count)
    transform = [
        a,
        b,
        x - a * x - b * y + np.rint(around(how.shift) * width),
        c,
        d,
        y - c * x - d * y + np.rint(around(how.shift) * height),
        zero,
        zero,
    ]
    saturation = 1 + around(how.saturation)
    gain = np.exp(np.where(rng.random(count) < how.exposed, rng.uniform(*EXPOSURES, count), 0))
    contrast = 1 + around(how.contrast)
    light = gain * (127.5 * (1 - contrast) + 255 * around(how.brightness))
    contrast *= gain
    blur = np.where(rng.random(count) < how.blurred, rng.uniform(-0.5, 1, count), 0)  # below 0 it sharpens
    erased = rng.random(count) < how.erased
    tall, wide = (rng.uniform(0.1, 0.4, count) * side * erased for side in (height, width))
    top, left = rng.uniform(-tall / 2, height - tall / 2), rng.uniform(-wide / 2, width - wide / 2)
    return (
        np.stack(transform, axis=1).astype(np.float32),
        np.stack([contrast * saturation, contrast * (1 - saturation), light, blur], axis=1).astype(np.float32),
        np.stack([top, left, top + tall, left + wide], axis=1).astype(np.float32),
    )


def recompress(rng: np.random.Generator, pixels: Pixels, share: float) -> Pixels:
    """Photos [n, h, w, 3] with the marks of a JPEG at quality 30-90 on some of them, as a messenger leaves them."""
    chosen = np.flatnonzero(rng.random(len(pixels)) < share)
    if not len(chosen):
        return pixels
    from PIL import Image

    marked = pixels.copy()
    for row in chosen:
        kept = io.BytesIO()
        Image.fromarray(pixels[row]).save(kept, "JPEG", quality=int(rng.integers(30, 91)))
        marked[row] = np.asarray(Image.open(kept))
    return marked


def mix(rng: np.random.Generator, pixels: Pixels, targets: Numbers) -> tuple[Pixels, Numbers]:
    """Each photo blended with another of the batch, its targets likewise.

    After Zhang et al., 'mixup: Beyond empirical risk minimization' (2018), with one share for the whole batch.
    """
    share = rng.beta(0.4, 0.4)
    other = rng.permutation(len(pixels))
    blended = pixels * np.float32(share) + pixels[other] * np.float32(1 - share)
    return blended.astype(np.uint8), (targets * share + targets[other] * (1 - share)).astype(np.float32)


class Augment(layers.Layer):  # type: ignore[misc]  # keras has no types
    """Makes the drawn views of a batch of pixels, 0-255, before they are prepared: later the light would clip."""

    def __init__(self, how: Views) -> None:
        super().__init__(dtype="float32")
        self._how = how  # what never happens takes no time

    def call(self, pixels: Any, transform: Any, colour: Any, box: Any) -> Any:
        """Float32 [n, h, w, 3] for uint8 pixels of the same shape and what `draw_views` drew."""

        def each(values: Any, column: int) -> Any:
            return values[:, column][:, None, None, None]

        x = ops.image.affine_transform(
            ops.cast(pixels, "float32"), transform, interpolation="bilinear", fill_mode="nearest"
        )
        grey = ops.mean(x, axis=-1, keepdims=True)
        x = each(colour, 0) * x + each(colour, 1) * grey + each(colour, 2)
        if self._how.blurred:
            x = x + each(colour, 3) * (ops.average_pool(x, 3, 1, "same") - x)
        if self._how.erased:
            x = self._erase(x, *(each(box, side) for side in range(4)))
        return ops.clip(x, 0.0, 255.0)

    def _erase(self, x: Any, top: Any, left: Any, bottom: Any, right: Any) -> Any:
        down = ops.arange(x.shape[1], dtype="float32")[None, :, None, None]
        across = ops.arange(x.shape[2], dtype="float32")[None, None, :, None]
        inside = ops.logical_and(
            ops.logical_and(down >= top, down < bottom), ops.logical_and(across >= left, across < right)
        )
        return ops.where(inside, 127.5, x)


def learner(network: keras.Model, how: Views) -> keras.Model:
    """What is fitted: the network behind the augmentation; inputs are pixels and the three arrays of `draw_views`."""
    pixels = keras.Input(network.input.shape[1:], dtype="uint8")
    drawn = [keras.Input((numbers,), dtype="float32") for numbers in (8, 4, 4)]
    return keras.Model([pixels, *drawn], network(Augment(how)(pixels, *drawn)))
