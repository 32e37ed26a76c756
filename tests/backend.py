"""Tensors and gradients under whichever backend Keras runs on: tensorflow, jax or torch."""

import contextlib

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()


@contextlib.contextmanager
def double_precision():
    """Yields the widest dtype of the backend: JAX has to be asked, Keras has no float64 on torch."""
    if BACKEND != "jax":
        yield "float32" if BACKEND == "torch" else "float64"
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield "float64"
    finally:
        jax.config.update("jax_enable_x64", before)


def tensor(values, dtype="float32"):
    return ops.convert_to_tensor(values if ops.is_tensor(values) else np.asarray(values), dtype=dtype)


def array(value):
    """Returns a tensor as NumPy array; half precision becomes float32, as NumPy has no bfloat16."""
    half = keras.backend.standardize_dtype(value.dtype) in ("float16", "bfloat16")
    return ops.convert_to_numpy(ops.cast(value, "float32") if half else value)


def compiled(function):
    """Returns the function of tensors; under JAX compiled whole, which would else compile each operation."""
    if BACKEND != "jax":
        return function
    import jax

    return jax.jit(function)


def gradients(function, *arrays, dtype="float32"):
    """Returns the derivatives of the scalar `function(*tensors)` by each tensor, as NumPy arrays."""
    tensors = [tensor(value, dtype) for value in arrays]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        found = tape.gradient(value, tensors)
    elif BACKEND == "jax":
        import jax

        found = compiled(jax.grad(function, argnums=tuple(range(len(tensors)))))(*tensors)
    else:
        import torch

        tensors = [value.detach().clone().requires_grad_() for value in tensors]
        found = torch.autograd.grad(function(*tensors), tensors)
    return [array(value) for value in found]


def numerical_gradients(function, *arrays, step=1e-5):
    """Returns the derivatives of a scalar function of NumPy arrays by central differences, in float64."""
    found = []
    for position, values in enumerate(arrays):
        gradient = np.zeros(values.shape)
        for index in np.ndindex(*values.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = [np.array(other, np.float64) for other in arrays]
                moved[position][index] += sign * step
                ends.append(float(function(*moved)))
            gradient[index] = (ends[0] - ends[1]) / (2.0 * step)
        found.append(gradient)
    return found
