"""The network: a backbone, one head a task, and the augmentation that it is trained through.

A network takes uint8 pixels [batch, height, width, 3] and gives float32 logits [batch, labels of all
tasks side by side]; what prepares the pixels is inside. All of it is backend-neutral Keras 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import keras
from keras import layers

from vehclass.errors import UsageError
from vehclass.records import Task


def build(backbone: str, input_size: tuple[int, int], tasks: Sequence[Task], weights: str | None = None) -> keras.Model:
    """A new network for `input_size` (width, height); `weights` is None, "imagenet" or a weights file.

    `backbone` is one of backbones.BACKBONES. Raises UsageError for weights that cannot be had or do not fit.
    """
    width, height = input_size
    pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
    try:
        features = MAKERS[backbone](pixels, weights)
    except Exception as error:
        if weights is None:
            raise
        # Keras raises whatever its download, HDF5 or NumPy raise.
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise UsageError(reason=f"The weights {weights} cannot be used for {backbone}: {reason}.") from error
    features = layers.Dropout(0.25, name="dropout")(features)
    heads = [
        layers.Dense(len(task.labels), dtype="float32", name=f"head_{n}")(features) for n, task in enumerate(tasks)
    ]
    logits = layers.Concatenate(name="logits", dtype="float32")(heads) if len(heads) > 1 else heads[0]
    return keras.Model(pixels, logits, name=backbone)


def augmentation(seed: int) -> keras.Sequential:
    """Random views of the same vehicle: mirrored, moved, nearer or farther, in another light.

    Works on pixels of 0-255, before they are prepared: after a rescaling the colour layers would clip.
    """
    return keras.Sequential(
        [
            layers.Rescaling(1.0),  # uint8 to float, still 0-255
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomTranslation(0.08, 0.08, fill_mode="nearest", seed=seed + 1),
            layers.RandomZoom((-0.12, 0.12), fill_mode="nearest", seed=seed + 2),
            layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 3),
            layers.RandomContrast(0.2, value_range=(0, 255), seed=seed + 4),
        ],
        name="augmentation",
    )


def _small(pixels: Any, weights: str | None) -> Any:
    """A small residual network for training from scratch on a CPU: 0.5 million weights.

    Its features are the mean and the maximum over the picture: the mean says what it is, the maximum
    finds a scratch.
    """
    if weights is not None:
        raise ValueError("the small backbone has no weights to start from")

    def unit(x: Any, filters: int, stride: int = 1, *, active: bool = True) -> Any:
        x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.Activation("relu")(x) if active else x

    x = unit(layers.Rescaling(1 / 127.5, offset=-1.0)(pixels), 24, 2)
    for filters in (48, 80, 128):
        kept = layers.AveragePooling2D(2, padding="same")(x)
        kept = layers.Conv2D(filters, 1, use_bias=False)(kept)
        kept = layers.BatchNormalization(momentum=0.9)(kept)
        x = unit(unit(x, filters, 2), filters, active=False)
        x = layers.Activation("relu")(layers.Add()([kept, x]))
    x = unit(x, 128)
    return layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])


def _published(make: Callable[..., keras.Model], **options: Any) -> Callable[[Any, str | None], Any]:
    """A network of keras.applications as a backbone; those named here take pixels of 0-255."""

    def backbone(pixels: Any, weights: str | None) -> Any:
        floats = layers.Rescaling(1.0)(pixels)
        return make(include_top=False, weights=weights, pooling="avg", input_tensor=floats, **options).output

    return backbone


MAKERS: Final[dict[str, Callable[[Any, str | None], Any]]] = {
    "small": _small,
    "mobilenet_v3_small": _published(keras.applications.MobileNetV3Small, include_preprocessing=True),
    "mobilenet_v3_large": _published(keras.applications.MobileNetV3Large, include_preprocessing=True),
    "efficientnet_v2_b0": _published(keras.applications.EfficientNetV2B0, include_preprocessing=True),
}
