"""The backbones to choose from; apart from the networks themselves, so that a wrong name is found without Keras."""

from typing import Final

# Name: what it is good for. Few, and each for a reason; sizes are millions of weights.
BACKBONES: Final = {
    "small": "0.4 M, for training from nothing, fast on a CPU",
    "medium": "1.5 M, the same twice as wide: better, at four times the time",
    "mobilenet_v3_small": "0.9 M, with ImageNet weights the fastest start on a CPU",
    "mobilenet_v3_large": "3 M, a step up from it",
    "efficientnet_v2_b0": "6 M, with ImageNet weights a good choice for make and model",
    "efficientnet_v2_b1": "7 M",
    "efficientnet_v2_b2": "9 M",
    "efficientnet_v2_b3": "13 M, for a GPU",
    "convnext_tiny": "28 M, for a GPU",
    "resnet50": "24 M, the one that everybody compares with; for a GPU",
}

OF_OUR_OWN: Final = ("small", "medium")
SMALLEST_PUBLISHED: Final = 32  # side of the input, in pixels, of all others
