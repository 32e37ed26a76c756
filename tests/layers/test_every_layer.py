"""Conformance of every layer of tfinv.layers: configuration, saving, shapes, precision, zeros."""

import inspect

import keras
import numpy as np
import pytest

from tests.backend import array, compiled, gradients, tensor
from tfinv import layers

RANDOM = np.random.default_rng(0)
POSES = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)
MAPS = RANDOM.normal(size=(4, 9, 7, 2)).astype(np.float32)
ANGLES = np.array([10.0, 100.0, 190.0, 300.0], np.float32)
LABELS = np.array([5, 0, 3, 3], np.int32)
MATRICES = RANDOM.normal(size=(4, 4, 5, 2, 3, 3)).astype(np.float32)
ACTIVATIONS = RANDOM.uniform(0.1, 0.9, (4, 4, 5, 2)).astype(np.float32)
# Votes of a size that half precision resolves.
SMALL_KERNEL = keras.initializers.RandomNormal(stddev=0.3, seed=1)

# Layer, arguments, inputs of batch 4. A layer new in tfinv.layers needs at least one line here.
CASES = {
    "Squash": ("Squash", {}, [POSES]),
    "Squash maps": ("Squash", {}, [MAPS]),
    "Length": ("Length", {}, [POSES]),
    "LinearOperators": ("LinearOperators", dict(num_steps=3), [MAPS, ANGLES]),
    "LinearOperators all": (
        "LinearOperators",
        dict(num_steps=5, low=-90.0, high=200.0, periodic=False, interpolation="linear"),
        [MAPS, ANGLES],
    ),
    "AddressField": ("AddressField", dict(period=360.0), [MAPS, ANGLES]),
    "AddressField all": (
        "AddressField",
        dict(hidden_units=(6, 5), period=None, scale=2.0, output_size=(5, 8)),
        [MAPS, POSES[:, 0]],
    ),
    "CapsuleCanvas": ("CapsuleCanvas", dict(size=(5, 8)), [POSES[..., :2], POSES]),
    "RepeatCodes": ("RepeatCodes", {}, [(LABELS[:, None] / 5).astype(np.float32), MAPS]),
    "ControlledDense": ("ControlledDense", dict(units=5), [POSES / 2, LABELS[:, None] / np.float32(5)]),
    "ControlledDense all": (
        "ControlledDense",
        dict(units=5, hidden_units=(6, 4), softmax=True, use_bias=True, kernel_initializer="zeros"),
        [MAPS, POSES[:, 0]],
    ),
    "ClassMask": ("ClassMask", {}, [POSES]),
    "ClassMask labels": ("ClassMask", {}, [POSES, LABELS]),
    "PrimaryCapsules": ("PrimaryCapsules", dict(channels=3, pose_dim=4, kernel_size=3), [MAPS]),
    "PrimaryCapsules same": (
        "PrimaryCapsules",
        dict(
            channels=2, pose_dim=5, kernel_size=2, strides=3, padding="same", kernel_initializer="he_normal"
        ),
        [MAPS],
    ),
    "RoutingCapsules": ("RoutingCapsules", dict(num_capsules=5, pose_dim=4), [POSES]),
    "RoutingCapsules all": (
        "RoutingCapsules",
        dict(
            num_capsules=2,
            pose_dim=7,
            num_iterations=1,
            use_bias=True,
            implementation="reference",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=1),
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [POSES],
    ),
    "PrimaryMatrixCapsules": ("PrimaryMatrixCapsules", dict(channels=3, pose_size=2), [MAPS]),
    "PrimaryMatrixCapsules all": (
        "PrimaryMatrixCapsules",
        dict(
            channels=2,
            pose_size=3,
            kernel_size=2,
            strides=3,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [MAPS],
    ),
    "ConvEMCapsules": (
        "ConvEMCapsules",
        dict(channels=3, kernel_initializer=SMALL_KERNEL),
        [MATRICES, ACTIVATIONS],
    ),
    "ConvEMCapsules all": (
        "ConvEMCapsules",
        dict(
            channels=1,
            kernel_size=2,
            strides=2,
            num_iterations=1,
            variant="article",
            final_inverse_temperature=0.02,
            implementation="reference",
            kernel_initializer=SMALL_KERNEL,
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [MATRICES, ACTIVATIONS],
    ),
    "EMCapsules": (
        "EMCapsules",
        dict(num_capsules=3, kernel_initializer=SMALL_KERNEL),
        [MATRICES, ACTIVATIONS],
    ),
    "EMCapsules all": (
        "EMCapsules",
        dict(
            num_capsules=5,
            num_iterations=1,
            variant="article",
            final_inverse_temperature=0.02,
            implementation="reference",
            kernel_initializer=SMALL_KERNEL,
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [MATRICES, ACTIVATIONS],
    ),
    "DepthwisePrimaryCapsules": ("DepthwisePrimaryCapsules", dict(pose_dim=2), [MAPS]),
    "DepthwisePrimaryCapsules all": (
        "DepthwisePrimaryCapsules",
        dict(pose_dim=1, kernel_initializer="he_normal"),
        [MAPS],
    ),
    "SelfAttentionCapsules": ("SelfAttentionCapsules", dict(num_capsules=5, pose_dim=4), [POSES]),
    "SelfAttentionCapsules all": (
        "SelfAttentionCapsules",
        dict(
            num_capsules=2,
            pose_dim=7,
            use_bias=False,
            kernel_initializer=SMALL_KERNEL,
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [POSES],
    ),
    "GroupConv2D": ("GroupConv2D", dict(filters=3), [MAPS]),
    "GroupConv2D all": (
        "GroupConv2D",
        dict(
            filters=2,
            kernel_size=2,
            strides=3,
            padding="same",
            num_rotations=2,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(0.02),
        ),
        [MATRICES[..., 0]],
    ),
    "GroupPooling": ("GroupPooling", {}, [MATRICES[..., 0]]),
    # Small values, for float32 finds a place to 1e-6 pixels.
    "SpatialTransformer": ("SpatialTransformer", {}, [MAPS / 8, POSES[:, :2].reshape(4, 6) / 4]),
    "SpatialTransformer rotation": (
        "SpatialTransformer",
        dict(transformation="rotation"),
        [MAPS / 8, POSES[:, 0, :1]],
    ),
}


@pytest.fixture(params=CASES, name="case")
def case_fixture(request):
    """A function that makes the layer, and its inputs."""
    name, arguments, inputs = CASES[request.param]

    def make(**rest):
        return getattr(layers, name)(**arguments, **rest)

    return make, inputs


def call(layer, inputs):
    def given(values):
        return values[0] if len(values) == 1 else values

    if not layer.built:  # before it is compiled
        layer(given([keras.KerasTensor(value.shape, value.dtype.name) for value in inputs]))
    return compiled(lambda *tensors: layer(given(tensors)))(
        *(tensor(value, value.dtype.name) for value in inputs)
    )


def call_all(layer, inputs):
    """The outputs of a layer as a list, also if there is one."""
    return as_list(call(layer, inputs))


def as_list(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def shape_list(shapes):
    """One or several output shapes as a list of tuples."""
    return [tuple(shape) for shape in (shapes if isinstance(shapes[0], (list, tuple)) else [shapes])]


def symbolic_model(layer, inputs, shapes=None):
    shapes = shapes or [value.shape[1:] for value in inputs]
    arguments = [
        keras.Input(shape, dtype=str(value.dtype)) for shape, value in zip(shapes, inputs, strict=True)
    ]
    return keras.Model(arguments, layer(arguments[0] if len(arguments) == 1 else arguments))


def test_every_layer_has_a_case():
    assert {name for name, _, _ in CASES.values()} == set(layers.__all__)


@pytest.mark.parametrize("name", layers.__all__)
def test_layer_is_registered_and_documented(name):
    layer = getattr(layers, name)
    assert keras.saving.get_registered_name(layer) == f"tfinv>{name}"
    for section in ("Input shape:", "Output shape:"):
        assert section in layer.__doc__


def test_config_holds_every_argument_and_makes_the_same_layer(case):
    layer = case[0](name="capsules", dtype="mixed_bfloat16", trainable=False)
    config = layer.get_config()
    arguments = inspect.signature(type(layer).__init__).parameters.values()
    named = {argument.name for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD}
    assert set(config) >= (named - {"self"}) | {"name", "dtype", "trainable"}
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again.compute_dtype == "bfloat16" and not again.trainable
    through_json = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert through_json.get_config() == config


def test_saved_and_loaded_layer_gives_the_same_bits(case, tmp_path):
    make, inputs = case
    model = symbolic_model(make(), inputs)
    for number, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = as_list(model.predict(inputs, verbose=0))
    for found, want in zip(as_list(loaded.predict(inputs, verbose=0)), expected, strict=True):
        np.testing.assert_array_equal(found, want)
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]


def test_shapes_agree_for_a_known_and_an_unknown_batch(case):
    make, inputs = case
    layer = make()
    actual = [tuple(output.shape) for output in call_all(layer, inputs)]
    shapes = [value.shape for value in inputs]
    assert shape_list(layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)) == actual
    unknown = [(None, *shape[1:]) for shape in shapes]
    expected = [(None, *shape[1:]) for shape in actual]
    assert shape_list(layer.compute_output_shape(unknown[0] if len(shapes) == 1 else unknown)) == expected
    assert [tuple(output.shape) for output in symbolic_model(make(), inputs).outputs] == expected


def test_any_batch_size_gives_the_same_samples(case):
    make, inputs = case
    layer = make()
    expected = [array(output) for output in call_all(layer, inputs)]
    for start, stop in ((0, 1), (1, 4), (0, 3)):
        parts = call_all(layer, [value[start:stop] for value in inputs])
        for part, want in zip(parts, expected, strict=True):
            np.testing.assert_allclose(array(part), want[start:stop], atol=1e-6)
    ragged = as_list(symbolic_model(layer, inputs).predict(inputs, batch_size=3, verbose=0))
    for part, want in zip(ragged, expected, strict=True):
        np.testing.assert_allclose(part, want, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_in_half_and_keeps_float32_weights(case, policy):
    make, inputs = case
    layer = make(dtype=policy)
    outputs = call_all(layer, inputs)
    dtypes = {keras.backend.standardize_dtype(output.dtype) for output in outputs}
    half = policy.removeprefix("mixed_")
    assert layer.compute_dtype == half
    # Codes are handed on as they are.
    assert dtypes == {"float32" if isinstance(layer, layers.RepeatCodes) else half}
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in layer.weights} <= {"float32"}
    full = make()
    call(full, inputs)
    full.set_weights(layer.get_weights())
    for half, exact in zip(outputs, call_all(full, inputs), strict=True):
        difference = array(half) - array(exact)
        assert np.abs(difference).max() < (0.01 if policy == "mixed_float16" else 0.05)


def test_zeros_give_finite_values_and_gradients(case):
    make, (first, *rest) = case
    layer = make()
    call(layer, [first, *rest])

    def score(poses):
        given = [poses, *(tensor(value, value.dtype.name) for value in rest)] if rest else poses
        return sum(
            keras.ops.sum(keras.ops.square(output)) + keras.ops.sum(output)
            for output in as_list(layer(given))
        )

    (gradient,) = gradients(score, np.zeros_like(first))
    assert np.isfinite(gradient).all()
