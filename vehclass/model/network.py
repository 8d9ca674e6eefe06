"""The network: a backbone, one head a task, and a column that says how unlike the training photos a photo is.

A network takes uint8 pixels [batch, height, width, 3] and gives float32 logits [batch, labels of all
tasks side by side]; what prepares the pixels is inside. All of it is backend-neutral Keras 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from vehclass.errors import UsageError
from vehclass.records import Task

FEATURES: Final = "features"  # the layer whose output the heads see: [batch, features]
SUMMARY: Final = "summary"  # the part of it that says what is in the picture, not where
HEAD: Final = "head_{}"
GRID: Final = 6


def build(
    backbone: str, input_size: tuple[int, int], tasks: Sequence[Task], weights: str | None = None, dropout: float = 0.0
) -> keras.Model:
    """A new network for `input_size` (width, height); `weights` is None, "imagenet" or a weights file.

    `backbone` is one of backbones.BACKBONES. Raises UsageError for weights that cannot be had or do not fit.
    """
    width, height = input_size
    pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
    try:
        summary, places = MAKERS[backbone](pixels, weights)
    except Exception as error:
        if weights is None:
            raise
        # Keras raises whatever its download, HDF5 or NumPy raise.
        raise UsageError(reason=_why_not(weights, backbone, error)) from error
    summary = layers.Identity(name=SUMMARY)(summary)
    features = layers.Concatenate(name=FEATURES)([summary, places]) if places is not None else summary
    features = layers.Dropout(dropout, name="dropout")(features)
    heads = [
        layers.Dense(len(task.labels), dtype="float32", name=HEAD.format(n))(features) for n, task in enumerate(tasks)
    ]
    logits = layers.Concatenate(name="logits", dtype="float32")(heads) if len(heads) > 1 else heads[0]
    return keras.Model(pixels, logits, name=backbone)


def _why_not(weights: str, backbone: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0][:200].rstrip(".")
    if weights == "imagenet" and ("URL fetch failure" in reason or "urlopen" in reason):
        return (
            f"The ImageNet weights of {backbone} are not on this machine and cannot be downloaded from here. Train where "
            "storage.googleapis.com can be reached, copy ~/.keras/models from such a machine, or name a weights file."
        )
    return f"The weights {weights} cannot be used for {backbone}: {reason}."


def take_weights(network: keras.Model, other: keras.Model) -> None:
    """Starts a network's backbone with that of another, which answers other questions perhaps at another input size.

    Raises ValueError when they are not of one shape.
    """
    ours, theirs = (_backbone_layers(one) for one in (network, other))
    if len(ours) != len(theirs):
        raise ValueError(f"it has {len(theirs)} layers with weights where {len(ours)} are needed")
    for mine, layer in zip(ours, theirs, strict=True):
        mine.set_weights(layer.get_weights())


def _backbone_layers(network: keras.Model) -> list[Any]:
    """The layers with weights up to the features, in order."""
    found = []
    for layer in network.layers:
        if layer.name == "dropout" or layer.name.startswith(("head_", "novelty_")):
            continue
        if layer.weights:
            found.append(layer)
    return found


def freeze_statistics(network: keras.Model) -> None:
    """Keeps the means and variances that a published network came with: few photos would only spoil them."""
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


def feature_model(network: keras.Model) -> keras.Model:
    """From pixels to what the heads see: [batch, features]."""
    return keras.Model(network.input, network.get_layer("dropout").input)


def stage_means(network: keras.Model) -> keras.Model:
    """From pixels to the means over the picture of the last layer at each resolution: [batch, numbers].

    Early layers see light, texture and noise, late ones what is in the picture: something unlike all training photos
    differs from them somewhere on the way.
    """
    up_to_summary = keras.Model(network.input, network.get_layer(SUMMARY).output)
    size = network.input.shape[1] * network.input.shape[2]
    last: dict[int, Any] = {}
    for layer in up_to_summary.layers:
        shape = layer.output.shape
        # Padding adds nothing to a mean, and a convolution computes it in passing unless somebody else asks for it, too.
        if isinstance(layer, layers.ZeroPadding2D):
            continue
        if len(shape) == 4 and 1 < shape[1] * shape[2] < size:
            last[shape[1] * shape[2]] = layer.output
    means = [layers.GlobalAveragePooling2D(name=f"novelty_mean_{at}")(one) for at, one in enumerate(last.values())]
    together = layers.Concatenate(name="novelty_means", dtype="float32")(means) if len(means) > 1 else means[0]
    return keras.Model(network.input, together)


def with_novelty(network: keras.Model, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> keras.Model:
    """The network with one column more: the squared length of its stage means after a linear map.

    `kernel` [numbers, k] and `bias` [k] are from `novelty.whitening`: the column is below 1 for most photos like
    those that were learnt from, and grows with how unlike them one is.
    """
    means = stage_means(network).output
    whitened = layers.Dense(len(bias), name="novelty_whitened", dtype="float32")
    length = layers.Dense(1, use_bias=False, name="novelty_length", dtype="float32")
    even = whitened(means)
    novelty = length(layers.Multiply(name="novelty_squares")([even, even]))
    whitened.set_weights([kernel, bias])
    length.set_weights([np.ones((len(bias), 1), np.float32)])
    return keras.Model(
        network.input, layers.Concatenate(name="logits_and_novelty")([network.output, novelty]), name=network.name
    )


def _residual(stem: int, widths: tuple[int, int, int]) -> Callable[[Any, str | None], tuple[Any, Any]]:
    """A small residual network for training from nothing on a CPU: a first convolution and three stages, so wide.

    Its summary is the mean and the maximum over the picture: the mean says what it is, the maximum finds a scratch.
    Beside it stand means of an early layer over a coarse grid, which know where things are: that tells makes apart
    that are seen from one side, of which there are few photos each. Small inputs are shrunk less, so that the last
    layers still see a picture.
    """

    def conv(x: Any, filters: int, stride: int = 1, *, size: int = 3, activation: str | None = None) -> Any:
        return layers.Conv2D(filters, size, stride, padding="same", activation=activation)(x)

    def backbone(pixels: Any, weights: str | None) -> tuple[Any, Any]:
        if weights is not None:
            raise ValueError("it has no published weights; name a model folder of your own, or none")
        side = min(pixels.shape[1:3])
        strides = (2, 2, 2, 2) if side >= 80 else (2, 1, 2, 2) if side >= 40 else (1, 2, 2, 1)
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
        x = conv(x, stem, strides[0], activation="relu")
        stages = []
        for filters, stride in zip(widths, strides[1:], strict=True):
            kept = layers.AveragePooling2D(2, padding="same")(x) if stride == 2 else x
            x = conv(conv(x, filters, stride, activation="relu"), filters)
            x = layers.Add()([conv(kept, filters, size=1), x])
            # Once a stage and not after every convolution: on a CPU normalising took more than half of the time.
            x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
            stages.append(x)
        summary = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
        cell = [-(-length // GRID) for length in stages[0].shape[1:3]]
        return summary, layers.Flatten()(layers.AveragePooling2D(cell, padding="same")(stages[0]))

    return backbone


def _published(make: Callable[..., keras.Model], **options: Any) -> Callable[[Any, str | None], tuple[Any, Any]]:
    """A network of keras.applications as a backbone; those named here take pixels of 0-255."""

    def backbone(pixels: Any, weights: str | None) -> tuple[Any, Any]:
        floats = layers.Rescaling(1.0)(pixels)
        return make(include_top=False, weights=weights, pooling="avg", input_tensor=floats, **options).output, None

    return backbone


def _resnet50(pixels: Any, weights: str | None) -> tuple[Any, Any]:
    """ResNet50, whose published weights take blue, green, red less their means: the first layer's weights are turned round instead."""
    means = [-123.68, -116.779, -103.939]
    floats = layers.Rescaling(1.0, offset=means)(pixels)
    network = keras.applications.ResNet50(include_top=False, weights=weights, pooling="avg", input_tensor=floats)
    if weights is not None:
        first = network.get_layer("conv1_conv")
        kernel, *rest = first.get_weights()
        first.set_weights([kernel[:, :, ::-1, :], *rest])
    return network.output, None


_applications = keras.applications
MAKERS: Final[dict[str, Callable[[Any, str | None], tuple[Any, Any]]]] = {
    "small": _residual(24, (48, 80, 128)),
    "medium": _residual(32, (96, 160, 256)),
    "mobilenet_v3_small": _published(_applications.MobileNetV3Small, include_preprocessing=True),
    "mobilenet_v3_large": _published(_applications.MobileNetV3Large, include_preprocessing=True),
    "efficientnet_v2_b0": _published(_applications.EfficientNetV2B0, include_preprocessing=True),
    "efficientnet_v2_b1": _published(_applications.EfficientNetV2B1, include_preprocessing=True),
    "efficientnet_v2_b2": _published(_applications.EfficientNetV2B2, include_preprocessing=True),
    "efficientnet_v2_b3": _published(_applications.EfficientNetV2B3, include_preprocessing=True),
    "convnext_tiny": _published(_applications.ConvNeXtTiny, include_preprocessing=True),
    "resnet50": _resnet50,
}
