"""Capsules drawn on a map at continuous positions."""

import keras
from keras import ops

from tfinv.layers._checks import check_at_least_one


@keras.saving.register_keras_serializable(package="tfinv")
class CapsuleCanvas(keras.layers.Layer):
    """Draws the activations of capsules on a map, each at a position of its own.

    A capsule at row r and column c of the map adds its activations, weighted by
    relu(1 - |i - r|) relu(1 - |j - c|), to the cells (i, j), of which at most four are near enough. What lies
    beyond the edge is cut off, and a capsule a whole cell beyond it draws nothing and gets no gradient. At
    whole numbers, where the weights have a kink, the gradient by the position is that towards the next cell.

    Drawing is a product of matrices, [H * W, K] by [K, C] a sample for K capsules: the sum over capsules has
    no order that could change from run to run, as it has when cells are added to by index on a GPU. Weights
    are computed in float32 at least, under any policy; the product is of the policy's precision.

    Args:
        size: Height and width of the map, at least 1.

    Input shape:
        List of positions [N, K, 2], row and column in cells from the centre of the map, and activations
        [N, K, C].

    Output shape:
        Maps [N, H, W, C].

    Raises:
        ValueError: If size is below 1, or positions and activations are of other shapes.

    Reference:
        The bilinear kernel of Jaderberg et al. 2015, "Spatial Transformer Networks", equation 5, there for
        reading.
    """

    def __init__(self, size: tuple[int, int], **kwargs):
        # Half precision would misplace the capsules.
        super().__init__(**{"autocast": False, **kwargs})
        height, width = size
        check_at_least_one(height=height, width=width)
        self.size = (height, width)

    def build(self, input_shape):
        positions, activations = input_shape
        if len(positions) != 3 or len(activations) != 3 or positions[2] != 2 or activations[2] is None:
            raise ValueError(
                "CapsuleCanvas needs positions [N, K, 2] and activations [N, K, C]. "
                f"Received: input_shape={input_shape}"
            )

    def call(self, inputs):
        positions, activations = inputs
        if keras.backend.standardize_dtype(positions.dtype) != "float64":
            positions = ops.cast(positions, "float32")
        height, width = self.size
        rows = nearness(positions[..., 0] + (height - 1) / 2, height)  # [N, H, K]
        columns = nearness(positions[..., 1] + (width - 1) / 2, width)  # [N, W, K]
        weights = ops.expand_dims(rows, 2) * ops.expand_dims(columns, 1)  # [N, H, W, K]
        batch, capsules = ops.shape(activations)[:2]
        weights = ops.reshape(weights, (batch, height * width, capsules))
        weights = ops.cast(weights, self.compute_dtype)
        maps = ops.matmul(weights, ops.cast(activations, self.compute_dtype))  # [N, H * W, C]
        return ops.reshape(maps, (-1, height, width, activations.shape[-1]))

    def compute_output_shape(self, input_shape):
        return (input_shape[1][0], *self.size, input_shape[1][2])

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def nearness(places, count: int):
    """Returns the weights relu(1 - |d|) [N, count, K] of the cells 0, 1, ... at distance d of places [N, K].

    Cells come before capsules, so that the product takes the weights as they lie.
    """
    cells = ops.expand_dims(ops.arange(count, dtype=places.dtype), -1)
    distances = ops.expand_dims(places, -2) - cells
    near = ops.logical_and(distances >= -1, distances < 1)
    # The two slopes as such, for relu and the absolute value have no slope at all in their kinks.
    return ops.where(near, ops.where(distances >= 0, 1 - distances, 1 + distances), 0)
