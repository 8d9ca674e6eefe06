"""What a network on a GPU needs: arithmetic in 16 bits, and batches that are large enough to pay."""

from collections.abc import Callable
from typing import Any, Final

SMALLEST_BATCH: Final = 32
LARGEST_BATCH: Final = 1024
WORTH_IT: Final = 1.05  # a batch of twice the size is taken where pictures come by this factor faster


def in_bfloat16(model: Any) -> Any:
    """The same Keras model, computing in bfloat16 where weights and answers stay in 32 bits.

    Layers that were told to stay in 32 bits by a name of their own keep to that.
    """
    import keras

    def in_few_bits(layer: Any) -> Any:
        config = layer.get_config()
        if not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "mixed_bfloat16"
        return layer.__class__.from_config(config)

    made = keras.models.clone_model(model, clone_function=in_few_bits)
    made.set_weights(model.get_weights())
    return made


def best_batch(seconds_of: Callable[[int], float], is_too_much: Callable[[Exception], bool]) -> int:
    """The smallest batch, in powers of two, beyond which pictures come hardly faster.

    `seconds_of` says how long a batch of so many takes; where it raises what `is_too_much` knows, the one before is taken.
    """
    best, count = SMALLEST_BATCH, SMALLEST_BATCH
    rate = best / max(1e-9, seconds_of(best))
    while count < LARGEST_BATCH:
        count *= 2
        try:
            faster = count / max(1e-9, seconds_of(count))
        except Exception as error:
            if not is_too_much(error):
                raise
            break
        if faster < WORTH_IT * rate:
            break
        best, rate = count, faster
    return best
