"""Every layer of tfinv.layers: configuration, saving, shapes and precision; then what each one computes."""

import inspect

import keras
import numpy as np
import pytest

from tests.backend import array, compiled, gradients, tensor
from tfinv import layers
from tfinv.ops import dynamic_routing

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
    "RepeatCodes": ("RepeatCodes", {}, [LABELS[:, None] / np.float32(5), MAPS]),
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


# Conformance of every layer


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
    assert dtypes == {layer.compute_dtype} == {policy.removeprefix("mixed_")}
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


# PrimaryCapsules


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel_size, strides", [(1, 1), (3, 2), (4, 3)])
def test_primary_capsules_count_follows_the_formula(padding, kernel_size, strides):
    layer = layers.PrimaryCapsules(3, 4, kernel_size, strides, padding)
    height, width = MAPS.shape[1:3]
    if padding == "valid":
        height, width = height - kernel_size + 1, width - kernel_size + 1
    positions = -(-height // strides) * -(-width // strides)
    assert tuple(call(layer, [MAPS]).shape) == (4, positions * 3, 4)
    assert layer.compute_output_shape((None, *MAPS.shape[1:])) == (None, positions * 3, 4)


def test_primary_capsules_are_squashed_convolutions_position_by_position():
    layer = layers.PrimaryCapsules(3, 4, kernel_size=3, strides=2)
    poses = array(call(layer, [MAPS]))
    kernel, bias = layer.get_weights()
    assert kernel.shape == (3, 3, 2, 12)
    index = 0
    for row in range(0, 9 - 2, 2):
        for column in range(0, 7 - 2, 2):
            patch = MAPS[:, row : row + 3, column : column + 3]
            sums = (np.einsum("bhwc,hwcf->bf", patch, kernel) + bias).reshape(4, 3, 4)
            norms = np.linalg.norm(sums, axis=-1, keepdims=True)
            expected = sums * norms / (1 + norms**2)
            np.testing.assert_allclose(poses[:, index : index + 3], expected, atol=1e-6)
            index += 3
    assert index == poses.shape[1]


def test_primary_capsules_take_images_of_unknown_size():
    layer = layers.PrimaryCapsules(3, 4, kernel_size=3)
    assert layer.compute_output_shape((None, None, 7, 2)) == (None, None, 4)
    model = symbolic_model(layer, [MAPS], [(None, None, 2)])
    assert tuple(model.output.shape) == (None, None, 4)
    expected = array(call(layer, [MAPS]))
    np.testing.assert_allclose(model.predict(MAPS, verbose=0), expected, atol=1e-6)
    assert model.predict(MAPS[:1, :5, :3], verbose=0).shape == (1, 2 * 1 * 3, 4)


# RoutingCapsules


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_routing_capsules_route_with_their_kernel_and_bias(iterations):
    layer = layers.RoutingCapsules(5, 4, iterations, use_bias=True)
    layer.build(POSES.shape)
    kernel = np.random.default_rng(1).normal(size=(6, 5, 3, 4))
    bias = np.random.default_rng(2).normal(size=(6, 5))
    layer.set_weights([kernel, bias])
    expected = dynamic_routing(tensor(POSES), tensor(kernel), iterations, tensor(bias))
    np.testing.assert_allclose(array(call(layer, [POSES])), array(expected), atol=1e-6)


def test_routing_capsules_weights_and_initializers():
    layer = layers.RoutingCapsules(20, 30, use_bias=True)
    layer.build((None, 40, 10))
    kernel, bias = layer.get_weights()
    assert kernel.shape == (40, 20, 10, 30) and bias.shape == (40, 20)
    # A normal of deviation 0.1, cut at two deviations, keeps .88 of its deviation.
    assert kernel.std() == pytest.approx(0.088, rel=0.02)
    # Keras on torch lets one in 200,000 escape the cut; an uncut normal has one in 22 outside.
    assert np.mean(np.abs(kernel) <= 0.2 + 1e-6) > 0.9999
    assert not bias.any()
    layer = layers.RoutingCapsules(2, 3, kernel_initializer="ones")
    layer.build((None, 4, 5))
    (kernel,) = layer.get_weights()
    assert (kernel == 1.0).all()


def test_routing_capsules_regularizer_counts_in_the_losses():
    layer = layers.RoutingCapsules(5, 4, kernel_regularizer=keras.regularizers.L2(0.02))
    model = symbolic_model(layer, [POSES])
    (kernel,) = layer.get_weights()
    assert [float(array(loss)) for loss in model.losses] == pytest.approx(
        [0.02 * np.sum(kernel**2)], rel=1e-5
    )


def test_routing_capsules_errors():
    with pytest.raises(ValueError, match=r"known number.*input_shape=\(None, None, 3\)"):
        layers.RoutingCapsules(5, 4).build((None, None, 3))
    with pytest.raises(ValueError, match=r"'fused'.*implementation=quick"):
        layers.RoutingCapsules(5, 4, implementation="quick")


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("RoutingCapsules", dict(num_capsules=0, pose_dim=4)),
        ("RoutingCapsules", dict(num_capsules=5, pose_dim=0)),
        ("RoutingCapsules", dict(num_capsules=5, pose_dim=4, num_iterations=0)),
        ("PrimaryCapsules", dict(channels=0)),
        ("PrimaryCapsules", dict(pose_dim=-1)),
    ],
)
def test_sizes_below_one_are_refused(name, arguments):
    wrong = next(f"{key}={value}" for key, value in arguments.items() if value < 1)
    with pytest.raises(ValueError, match=f"at least 1.*{wrong}"):
        getattr(layers, name)(**arguments)


# Readout


def test_length_and_squash_values():
    vectors = np.array([[[3.0, 4.0], [0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(array(layers.Length()(vectors)), [[5.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(array(layers.Squash()(vectors)), [[[15 / 26, 20 / 26], [0.0, 0.0]]], rtol=1e-6)


def test_class_mask_keeps_the_longest_capsule():
    poses = np.array(
        [[[1.0, 0.0], [0.0, -2.0], [1.0, 1.0]], [[3.0, 0.0], [2.0, 2.0], [0.0, 0.0]]], np.float32
    )
    masked = array(layers.ClassMask()(poses))
    np.testing.assert_array_equal(masked, [[0, 0, 0, -2, 0, 0], [3, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_class_mask_keeps_one_capsule_of_a_tie(value):
    masked = array(layers.ClassMask()(np.full((3, 4, 2), value, np.float32))).reshape(3, 4, 2)
    np.testing.assert_array_equal(masked.sum(axis=(1, 2)), np.full(3, 2 * value))


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS[:, None], LABELS.astype(np.int64)], ids=["B", "B1", "int64"]
)
def test_class_mask_keeps_the_capsule_of_the_label(labels):
    masked = array(layers.ClassMask()([POSES, labels]))
    expected = np.zeros_like(POSES)
    for sample, label in enumerate(LABELS):
        expected[sample, label] = POSES[sample, label]
    np.testing.assert_array_equal(masked, expected.reshape(4, 18))
