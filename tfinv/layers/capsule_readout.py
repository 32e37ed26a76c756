"""What is read off a layer of capsules: squashed vectors, lengths, and one class's pose."""

import keras
from keras import ops

from tfinv.ops import length, squash


@keras.saving.register_keras_serializable(package="tfinv")
class Squash(keras.layers.Layer):
    """Shrinks vectors along the last axis to a length in [0, 1).

    Input shape:
        [..., D]

    Output shape:
        [..., D]

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", equation 1.
    """

    def call(self, inputs):
        return squash(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="tfinv")
class Length(keras.layers.Layer):
    """Euclidean length of vectors along the last axis, with a finite gradient at 0.

    Input shape:
        [..., D]

    Output shape:
        [...]
    """

    def call(self, inputs):
        return length(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape[:-1]


@keras.saving.register_keras_serializable(package="tfinv")
class ClassMask(keras.layers.Layer):
    """Keeps the pose of one class capsule and zeroes the others, flattened for a decoder.

    Called on poses alone it keeps the longest capsule; called on `[poses, labels]` that of the label.

    Input shape:
        Poses [B, J, D], or a list of poses [B, J, D] and integer labels [B] or [B, 1].

    Output shape:
        [B, J * D]

    Reference:
        Sabour et al. 2017, "Dynamic Routing Between Capsules", section 4.1.
    """

    def call(self, inputs):
        if isinstance(inputs, (list, tuple)):
            poses, labels = inputs[0], ops.reshape(inputs[1], (-1,))
        else:
            poses = inputs
            # top_k, not argmax: argmax on floats breaks the export to ONNX and LiteRT.
            labels = ops.top_k(length(poses), k=1)[1][:, 0]
        parents, pose_dim = poses.shape[1:]
        mask = ops.one_hot(labels, parents, dtype=poses.dtype)  # [B, J]
        return ops.reshape(poses * ops.expand_dims(mask, -1), (-1, parents * pose_dim))

    def compute_output_shape(self, input_shape):
        with_labels = isinstance(input_shape[0], (list, tuple))
        batch, parents, pose_dim = input_shape[0] if with_labels else input_shape
        return (batch, parents * pose_dim)
