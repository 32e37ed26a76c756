"""The fused routing ops of TensorFlow: loads their library and registers their gradients.

Twins of the functions in `tfinv.ops.reference` and `em_reference`, computed by C++ kernels that never form
the votes of the whole batch. Everything is computed in float32; inputs of other types are cast, and the
results cast back. Gradients are exact through all iterations. There is no second derivative: asking for one
raises a LookupError that names the op, "Tfinv>DynamicRoutingGrad" or "Tfinv>EmRoutingGrad".

Importing this module loads nothing. A SavedModel that contains these ops is loaded after `load()`.
"""

import threading

import keras
import tensorflow as tf

from tfinv.ops import _library

_lock = threading.Lock()
_loaded: list[tuple] = []  # one (module of the ops, BuildInfo) once loaded


def load() -> _library.BuildInfo:
    """Loads the library, which is compiled on the first use; later calls return the same.

    Raises:
        LibraryError: If there is no library and none can be compiled, or it does not load.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0][1]


def _load() -> tuple:
    path = _library.library("tensorflow")
    try:
        try:
            ops = tf.load_op_library(str(path))
        except tf.errors.NotFoundError:
            # As where an installed library was compiled on a newer system than this one.
            path = _library.library("tensorflow", force=True)
            ops = tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        raise _library.LibraryError(f"{path} does not load: {error.message}") from error
    # TensorFlow gives an empty module if another library registered ops of these names before.
    if not hasattr(ops, "tfinv_em_routing_grad"):
        raise _library.LibraryError(f"Ops of the names in {path} were loaded from another library before.")
    return ops, _library.describe("tensorflow", path)


def _ops():
    load()
    return _loaded[0][0]


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
        tf.errors.InvalidArgumentError: If shapes do not fit; as ValueError if a graph knows them.
    """
    poses, weights = tf.convert_to_tensor(poses), tf.convert_to_tensor(weights)
    outputs, _ = _ops().tfinv_dynamic_routing(
        _single(poses), _single(weights), _single_or_none(bias), iterations=num_iterations
    )
    return tf.cast(outputs, _result_dtype(poses, weights))


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
        tf.errors.InvalidArgumentError: If shapes do not fit; as ValueError if a graph knows them.
    """
    poses, activations, weights = (tf.convert_to_tensor(value) for value in (poses, activations, weights))
    outputs, output_activations, _ = _ops().tfinv_em_routing(
        *(_single(value) for value in (poses, activations, weights, beta_u_summed, beta_a)),
        _single_or_none(bias),
        em_variant=variant,
        inverse_temperatures=list(inverse_temperatures),
        variance_floor=variance_floor,
    )
    dtype = _result_dtype(poses, weights)
    return tf.cast(outputs, dtype), tf.cast(output_activations, activations.dtype)


@tf.RegisterGradient("Tfinv>DynamicRouting")
def _dynamic_routing_gradient(op, doutputs, _):
    return _ops().tfinv_dynamic_routing_grad(
        *op.inputs, op.outputs[1], doutputs, iterations=op.get_attr("iterations")
    )


@tf.RegisterGradient("Tfinv>EmRouting")
def _em_routing_gradient(op, doutputs, doutput_activations, _):
    return _ops().tfinv_em_routing_grad(
        *op.inputs,
        op.outputs[2],
        doutputs,
        doutput_activations,
        **{name: op.get_attr(name) for name in ("em_variant", "inverse_temperatures", "variance_floor")},
    )


def _single(value):
    return tf.cast(value, tf.float32)


def _single_or_none(bias):
    # The ops take an empty matrix for no bias: an input cannot be left out.
    return tf.zeros((0, 0)) if bias is None else _single(bias)


def _result_dtype(poses, weights) -> str:
    return keras.backend.result_type(poses.dtype.name, weights.dtype.name)
