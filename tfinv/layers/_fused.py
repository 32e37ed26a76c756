"""What a layer that may run a fused op tells Keras."""

import keras

from tfinv.ops import runs_fused


def forbid_xla_if_fused(layer: keras.layers.Layer) -> None:
    """Keeps Keras from compiling a layer by XLA, if it runs TensorFlow's fused op, which has no XLA form."""
    if keras.backend.backend() == "tensorflow" and runs_fused(layer.implementation, layer.compute_dtype):
        layer.supports_jit = False
