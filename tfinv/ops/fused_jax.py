"""The fused routing ops of JAX: loads their library, registers its XLA handlers and their gradients.

Twins of the functions in `tfinv.ops.reference` and `em_reference`, computed by C++ or CUDA kernels that never
form the votes of the whole batch. Everything is computed in float32; inputs of other types are cast, and the
results cast back. Gradients are exact through all iterations and of the first order only: they work under
`jax.jit` and `jax.grad`, and `jax.vmap` runs one call after the other. Importing this module loads nothing.
"""

import ctypes
import threading
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tfinv.ops import _library

_VARIANTS = ("hinton2018", "article")  # EmVariant in custom_ops/core/routing.h
_lock = threading.Lock()
_loaded: list[_library.BuildInfo] = []


def load() -> _library.BuildInfo:
    """Loads the library, which is compiled on the first use; later calls return the same.

    Raises:
        LibraryError: If there is no library and none can be compiled, or it does not load.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def _load() -> _library.BuildInfo:
    path = _library.library("jax")
    try:
        try:
            handlers = ctypes.CDLL(str(path))
        except OSError:
            # As where an installed library was compiled on a newer system than this one.
            path = _library.library("jax", force=True)
            handlers = ctypes.CDLL(str(path))
    except OSError as error:
        raise _library.LibraryError(f"{path} does not load: {error}") from error
    for op in ("DynamicRouting", "DynamicRoutingGrad", "EmRouting", "EmRoutingGrad"):
        for device, platform in (("Cpu", "cpu"), ("Cuda", "CUDA")):
            handler = getattr(handlers, f"Tfinv{op}{device}", None)
            if handler is not None:
                jax.ffi.register_ffi_target(f"tfinv_{op}", jax.ffi.pycapsule(handler), platform=platform)
    info = _library.describe("jax", path)
    device = jax.default_backend()
    if device != "cpu" and not (device == "gpu" and info.cuda):
        missing = info.reason or "They are for CPUs and NVIDIA GPUs."
        raise _library.LibraryError(f"JAX runs on {device}, for which the library has no kernels. {missing}")
    return info


def dynamic_routing(poses, weights, num_iterations: int = 3, bias=None):
    """Twin of `tfinv.ops.dynamic_routing`; shapes are checked when it runs.

    Args:
        poses: Child poses [B, I, K]; B may be 0.
        weights: Transformation matrices [I, J, K, D].
        num_iterations: Number of couplings, at least 1.
        bias: Initial routing logits [I, J], or None for zeros.

    Returns:
        Parent poses [B, J, D].

    Raises:
        ValueError: If `weights` has not four axes.
        jax.errors.JaxRuntimeError: If shapes do not fit.
    """
    load()
    poses, weights = jnp.asarray(poses), jnp.asarray(weights)
    outputs = _dynamic(num_iterations, *map(_single, (poses, weights)), _single_or_none(bias))
    return outputs.astype(_result_dtype(poses, weights))


def em_routing(
    poses,
    activations,
    weights,
    beta_u_summed,
    beta_a,
    inverse_temperatures,
    variant: str,
    variance_floor: float,
    bias=None,
):
    """Twin of `tfinv.ops.em_routing`; shapes are checked when it runs.

    Args:
        poses: Child poses [B, I, P, P]; B may be 0.
        activations: Child activations [B, I] in [0, 1].
        weights: Transformation matrices [I, J, P, P].
        beta_u_summed: beta_u summed over the components of a pose [J].
        beta_a: [J].
        inverse_temperatures: Factor on the logit of the activations, a number for each iteration.
        variant: "hinton2018" or "article".
        variance_floor: Added to each variance, above 0.
        bias: Initial routing logits [I, J], or None for zeros.

    Returns:
        Parent poses [B, J, P, P] and activations [B, J].

    Raises:
        ValueError: If `weights` has not four axes, or `variant` is unknown.
        jax.errors.JaxRuntimeError: If shapes do not fit.
    """
    load()
    if variant not in _VARIANTS:
        raise ValueError(
            f"Invalid value for argument variant. Expected one of {_VARIANTS}. Received: variant={variant}"
        )
    poses, activations, weights = (jnp.asarray(value) for value in (poses, activations, weights))
    settings = (tuple(map(float, inverse_temperatures)), variant, float(variance_floor))
    arrays = (_single(value) for value in (poses, activations, weights, beta_u_summed, beta_a))
    outputs, output_activations = _em(settings, *arrays, _single_or_none(bias))
    return outputs.astype(_result_dtype(poses, weights)), output_activations.astype(activations.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dynamic(iterations, poses, weights, bias):
    return _dynamic_forward(iterations, poses, weights, bias)[0]


def _dynamic_forward(iterations, poses, weights, bias):
    _check_matrices(weights, "[I, J, K, D]")
    parents, _, size = weights.shape[1:]
    shape = (poses.shape[0], parents, size)
    call = _ffi_call("DynamicRouting", shape, (iterations, *shape))
    outputs, sums = call(poses, weights, bias, iterations=np.int64(iterations))
    return outputs, (poses, weights, bias, sums)


def _dynamic_backward(iterations, saved, doutputs):
    call = _ffi_call("DynamicRoutingGrad", *(value.shape for value in saved[:3]))
    return tuple(call(*saved, doutputs, iterations=np.int64(iterations)))


_dynamic.defvjp(_dynamic_forward, _dynamic_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _em(settings, poses, activations, weights, beta_u, beta_a, bias):
    return _em_forward(settings, poses, activations, weights, beta_u, beta_a, bias)[0]


def _em_forward(settings, *arrays):
    poses, weights = arrays[0], arrays[2]
    _check_matrices(weights, "[I, J, P, P]")
    parents, size = weights.shape[1:3]
    rows = (poses.shape[0], parents)
    statistics = (len(settings[0]), *rows, 2 * size * size + 1)
    call = _ffi_call("EmRouting", (*rows, size, size), rows, statistics)
    *outputs, statistics = call(*arrays, **_em_attributes(settings))
    return tuple(outputs), (*arrays, statistics)


def _em_backward(settings, saved, doutputs):
    call = _ffi_call("EmRoutingGrad", *(value.shape for value in saved[:-1]))
    return tuple(call(*saved, *doutputs, **_em_attributes(settings)))


_em.defvjp(_em_forward, _em_backward)


def _ffi_call(op: str, *shapes):
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(f"tfinv_{op}", results, vmap_method="sequential")


def _em_attributes(settings) -> dict:
    temperatures, variant, variance_floor = settings
    return {
        "inverse_temperatures": np.asarray(temperatures, np.float32),
        "variant": np.int64(_VARIANTS.index(variant)),
        "variance_floor": np.float32(variance_floor),
    }


def _check_matrices(weights, axes: str) -> None:
    if weights.ndim != 4:
        raise ValueError(
            f"Invalid shape of argument weights. Expected {axes}. Received: weights.shape={weights.shape}"
        )


def _single(value):
    return jnp.asarray(value).astype(jnp.float32)


def _single_or_none(bias):
    # The handlers take an empty matrix for no bias: an argument cannot be left out.
    return jnp.zeros((0, 0), jnp.float32) if bias is None else _single(bias)


def _result_dtype(poses, weights) -> str:
    return keras.backend.result_type(poses.dtype.name, weights.dtype.name)
