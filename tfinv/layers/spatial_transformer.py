"""Resampling of images under transformations that a network itself predicts."""

import keras
from keras import ops

from tfinv.layers._bilinear import corners

TRANSFORMATIONS = {"affine": 6, "rotation": 1}


@keras.saving.register_keras_serializable(package="tfinv")
class SpatialTransformer(keras.layers.Layer):
    """Resamples each image bilinearly under its own transformation, differentiably in both.

    Parameters of 0 are the identity, so a localisation network that ends in a dense layer with zeros for
    weights starts from the untransformed image.

    Under "affine", output place (x, y) shows input place
    ((1 + p0) x + p1 y + p2, p3 x + (1 + p4) y + p5); x points right, y down, both in -1..1 from edge to edge.
    Under "rotation" the only parameter is the angle by which the image is turned about its centre, in
    radians, counter-clockwise. What lies outside the image is 0.

    Places are computed in float32, or in the parameters' dtype if that is wider, under any policy, for half
    precision would move pixels by up to a tenth of their size.

    Args:
        transformation: "affine" or "rotation".

    Input shape:
        List of images [N, H, W, C] and parameters [N, 6], or [N, 1] under "rotation".

    Output shape:
        Images [N, H, W, C].

    Reference:
        Jaderberg et al. 2015, "Spatial Transformer Networks", equations 1 and 5.
    """

    def __init__(self, transformation: str = "affine", **kwargs):
        super().__init__(autocast=False, **kwargs)
        if transformation not in TRANSFORMATIONS:
            raise ValueError(
                f"Invalid value for argument transformation. Expected one of {', '.join(TRANSFORMATIONS)}. "
                f"Received: transformation={transformation}"
            )
        self.transformation = transformation

    def build(self, input_shape):
        self._check(input_shape)

    def call(self, inputs):
        images, parameters = inputs
        images = ops.cast(images, self.compute_dtype)
        if keras.backend.standardize_dtype(parameters.dtype) != "float64":
            parameters = ops.cast(parameters, "float32")
        columns, rows = self._places(parameters, *ops.shape(images)[1:3])
        return bilinear_sample(images, columns, rows)

    def _places(self, parameters, height, width):
        """Returns the input columns and rows [N, H, W] that the output shows, in pixels."""
        dtype = parameters.dtype
        half_width, half_height = ops.cast(width, dtype) / 2, ops.cast(height, dtype) / 2
        x = ops.arange(0.5, width, dtype=dtype) - half_width  # [W], from the centre
        y = ops.expand_dims(ops.arange(0.5, height, dtype=dtype) - half_height, -1)  # [H, 1]
        p = ops.expand_dims(parameters, (1, 2))  # [N, 1, 1, P]
        if self.transformation == "rotation":
            cosine, sine = ops.cos(p[..., 0]), ops.sin(p[..., 0])
            columns, rows = cosine * x - sine * y, sine * x + cosine * y
        else:
            u, v = x / half_width, y / half_height
            columns = x + half_width * (p[..., 0] * u + p[..., 1] * v + p[..., 2])
            rows = y + half_height * (p[..., 3] * u + p[..., 4] * v + p[..., 5])
        return columns + (half_width - 0.5), rows + (half_height - 0.5)

    def _check(self, shapes):
        expected = TRANSFORMATIONS[self.transformation]
        if len(shapes) != 2 or len(shapes[0]) != 4 or tuple(shapes[1][1:]) != (expected,):
            raise ValueError(
                f"SpatialTransformer needs images [N, H, W, C] and parameters [N, {expected}] of the "
                f"transformation {self.transformation}. Received: input_shape={shapes}"
            )

    def compute_output_shape(self, input_shape):
        self._check(input_shape)
        return tuple(input_shape[0])

    def get_config(self):
        return {**super().get_config(), "transformation": self.transformation}


def bilinear_sample(images, columns, rows):
    """Reads images at fractional places; outside they are 0.

    Args:
        images: [N, H, W, C].
        columns: Places in pixels [N, H', W']; 0 is the centre of the first column.
        rows: Places in pixels [N, H', W'].

    Returns:
        [N, H', W', C], of the dtype of `images`.
    """
    count, height, width, channels = ops.shape(images)
    # All images one below the other, so that one number names a pixel.
    pixels = ops.reshape(images, (-1, channels))
    first = ops.expand_dims(ops.arange(count, dtype="int32") * (height * width), (1, 2))
    sampled = 0.0
    for index, weights in corners(rows, columns, height, width):
        weights = ops.expand_dims(ops.cast(weights, images.dtype), -1)
        sampled += ops.take(pixels, first + index, axis=0) * weights
    return sampled
