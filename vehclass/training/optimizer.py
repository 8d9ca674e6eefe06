"""How a network learns from its gradients: Muon for the backbones of our own, AdamW for those that others have trained."""

from typing import Any, Final

import keras
from keras import ops

from vehclass.model.backbones import OF_OUR_OWN

WEIGHT_DECAY: Final = 0.02
NARROWEST: Final = (
    8  # a matrix with fewer columns has no directions to even out: depthwise kernels, a head of two labels
)
LARGEST_GRADIENT: Final = 5.0  # of AdamW, by its norm; Muon's steps have one length whatever the gradient's


def optimizer_for(backbone: str, learning_rate: float) -> Any:
    """The optimizer of a backbone's training; weights decay, biases and normalisations do not."""
    if backbone in OF_OUR_OWN:
        made = Muon(learning_rate, weight_decay=WEIGHT_DECAY, adam_weight_decay=WEIGHT_DECAY, exclude_layers=["head_"])
    else:
        made = keras.optimizers.AdamW(learning_rate, weight_decay=WEIGHT_DECAY, clipnorm=LARGEST_GRADIENT)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


class Muon(keras.optimizers.Muon):  # type: ignore[misc]  # keras has no types
    """Keras' Muon, which takes convolutions, too: each as the matrix of what a filter sees by filters.

    After Jordan and others, 'Muon: An optimizer for hidden layers in neural networks' (2024), with the step length of
    Liu and others, 'Muon is scalable for LLM training' (arXiv 2502.16982), by which AdamW's rates fit. What is no
    matrix, or too narrow a one, learns by AdamW.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        if len(variable.shape) == 4:
            return bool(variable.shape[-1] < NARROWEST)
        return bool(super()._should_use_adamw(variable))

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        ahead = ops.add(gradient, self.momentum * m)
        matrix = ops.reshape(ahead, (-1, variable.shape[-1]))
        update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
        self.assign_sub(variable, ops.reshape(update, variable.shape))
