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
SUMMARY: Final = "summary"  # the part of it that says what is in the picture, not where: what novelty is told by
HEAD: Final = "head_{}"
GRID: Final = 6


def build(
    backbone: str, input_size: tuple[int, int], tasks: Sequence[Task], weights: str | None = None, dropout: float = 0.25
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


def summary_model(network: keras.Model) -> keras.Model:
    """From pixels to what novelty is told by: [batch, numbers]."""
    return keras.Model(network.input, network.get_layer(SUMMARY).output)


def with_novelty(network: keras.Model, prototypes: NDArray[np.float32]) -> keras.Model:
    """The network with one column more: 1 - the greatest cosine between a photo's features and the prototypes.

    `prototypes` [numbers, n] are unit vectors. The column is 0 for a photo just like one that was learnt from and
    grows to 2. After Sun et al., 'Out-of-distribution detection with deep nearest neighbors' (2022), with the
    centres of clusters in place of all photos, which keeps the network small.
    """
    unit = layers.UnitNormalization(name="novelty_unit")(network.get_layer(SUMMARY).output)
    near = layers.Dense(prototypes.shape[1], use_bias=False, name="novelty_prototypes")
    nearest = keras.ops.max(near(unit), axis=-1, keepdims=True)
    novelty = layers.Rescaling(-1.0, offset=1.0, name="novelty_distance")(nearest)
    near.set_weights([prototypes])
    return keras.Model(
        network.input, layers.Concatenate(name="logits_and_novelty")([network.output, novelty]), name=network.name
    )


def _small(pixels: Any, weights: str | None) -> tuple[Any, Any]:
    """A small residual network for training from scratch on a CPU: 0.4 million weights.

    Its summary is the mean and the maximum over the picture: the mean says what it is, the maximum finds a scratch.
    Beside it stand means of an early layer over a coarse grid, which know where things are: that tells makes apart
    that are seen from one side, of which there are few photos each. Small inputs are shrunk less, so that the last
    layers still see a picture.
    """
    if weights is not None:
        raise ValueError("it has no published weights; name a model folder of your own, or none")
    side = min(pixels.shape[1:3])
    strides = (2, 2, 2, 2) if side >= 80 else (2, 1, 2, 2) if side >= 40 else (1, 2, 2, 1)

    def unit(x: Any, filters: int, stride: int = 1, *, size: int = 3, active: bool = True) -> Any:
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.Activation("relu")(x) if active else x

    x = unit(layers.Rescaling(1 / 127.5, offset=-1.0)(pixels), 24, strides[0])
    stages = []
    for filters, stride in zip((48, 80, 128), strides[1:], strict=True):
        kept = layers.AveragePooling2D(2, padding="same")(x) if stride == 2 else x
        kept = unit(kept, filters, size=1, active=False)
        x = unit(unit(x, filters, stride), filters, active=False)
        x = layers.Activation("relu")(layers.Add()([kept, x]))
        stages.append(x)
    summary = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    cell = [-(-length // GRID) for length in stages[0].shape[1:3]]
    return summary, layers.Flatten()(layers.AveragePooling2D(cell, padding="same")(stages[0]))


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
    "small": _small,
    "mobilenet_v3_small": _published(_applications.MobileNetV3Small, include_preprocessing=True),
    "mobilenet_v3_large": _published(_applications.MobileNetV3Large, include_preprocessing=True),
    "efficientnet_v2_b0": _published(_applications.EfficientNetV2B0, include_preprocessing=True),
    "efficientnet_v2_b1": _published(_applications.EfficientNetV2B1, include_preprocessing=True),
    "efficientnet_v2_b2": _published(_applications.EfficientNetV2B2, include_preprocessing=True),
    "efficientnet_v2_b3": _published(_applications.EfficientNetV2B3, include_preprocessing=True),
    "convnext_tiny": _published(_applications.ConvNeXtTiny, include_preprocessing=True),
    "resnet50": _resnet50,
}
