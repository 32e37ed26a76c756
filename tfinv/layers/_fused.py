"""What a layer that may run a fused op tells Keras."""

import keras

from tfinv.ops import Implementation, runs_fused


class MayRunFusedOp:
    """Keeps Keras from compiling a layer by XLA where it runs TensorFlow's fused op, which has no XLA form.

    Keras asks for `supports_jit` in `compile`, which may come before the layer is built.
    """

    implementation: Implementation
    compute_dtype: str

    def runs_fused_op(self) -> bool:
        """Returns whether the layer runs the fused op of the backend."""
        return runs_fused(self.implementation, self.compute_dtype)

    @property
    def supports_jit(self) -> bool:
        """Whether the layer can be compiled by XLA."""
        return self._supports_jit and not (keras.backend.backend() == "tensorflow" and self.runs_fused_op())

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self._supports_jit = value
