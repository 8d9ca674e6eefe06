"""The names of the backbones; apart from the networks themselves, so that a wrong name is found without Keras."""

from typing import Final

BACKBONES: Final = ("small", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_v2_b0")
