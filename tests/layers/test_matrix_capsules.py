"""What the layers of matrix capsules compute, position by position; their conformance: test_every_layer."""

import keras
import numpy as np
import pytest

from tests.backend import BACKEND, array, compiled, gradients, tensor
from tests.fused import fused_fixture  # noqa: F401
from tfinv import layers
from tfinv.ops import EM_VARIANTS, em_routing, em_routing_from_votes

RANDOM = np.random.default_rng(0)
MAPS = RANDOM.normal(size=(2, 5, 4, 3)).astype(np.float32)
# An odd map of two channels of 3x3 matrices.
POSES = RANDOM.normal(size=(2, 6, 5, 2, 3, 3)).astype(np.float32)
ACTIVATIONS = RANDOM.uniform(0.1, 0.9, (2, 6, 5, 2)).astype(np.float32)
# Warmer than the default, so that activations differ by more than rounding.
WARM = 0.5


def call(layer, poses=POSES, activations=ACTIVATIONS):
    """The outputs of a built layer as arrays."""
    routed = compiled(lambda *given: layer(list(given)))
    return [array(part) for part in routed(tensor(poses), tensor(activations))]


def randomize(layer, *shapes):
    """Builds the layer and gives its betas other values than the zeros they start at."""
    layer.build(list(shapes) or [POSES.shape, ACTIVATIONS.shape])
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(size=weight.shape) * 0.5 for weight in layer.weights])
    return layer


def arguments(layer):
    kernel, beta_u, beta_a = (tensor(weight) for weight in layer.get_weights())
    return kernel, dict(
        beta_u=beta_u,
        beta_a=beta_a,
        num_iterations=layer.num_iterations,
        variant=layer.variant,
        final_inverse_temperature=layer.final_inverse_temperature,
    )


# PrimaryMatrixCapsules


def test_primary_matrix_capsules_are_a_linear_and_a_logistic_convolution():
    layer = layers.PrimaryMatrixCapsules(channels=2, pose_size=3)
    poses, activations = (array(part) for part in layer(tensor(MAPS)))
    kernel, bias = layer.get_weights()
    assert kernel.shape == (1, 1, 3, 2 * 10)
    sums = np.einsum("bhwc,cf->bhwf", MAPS, kernel[0, 0]) + bias
    np.testing.assert_allclose(poses, sums[..., :18].reshape(2, 5, 4, 2, 3, 3), atol=1e-6)
    np.testing.assert_allclose(activations, 1 / (1 + np.exp(-sums[..., 18:])), atol=1e-6)


@pytest.mark.parametrize("padding, expected", [("valid", (2, 1)), ("same", (3, 2))])
def test_primary_matrix_capsules_stride(padding, expected):
    layer = layers.PrimaryMatrixCapsules(2, 3, kernel_size=3, strides=2, padding=padding)
    poses, activations = layer(tensor(MAPS))
    assert tuple(poses.shape) == (2, *expected, 2, 3, 3)
    assert tuple(activations.shape) == (2, *expected, 2)


# ConvEMCapsules


@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize("kernel_size, strides", [(1, 1), (3, 2), (2, 3)])
def test_conv_capsules_route_each_patch_with_the_same_weights(kernel_size, strides, variant):
    layer = randomize(
        layers.ConvEMCapsules(4, kernel_size, strides, variant=variant, final_inverse_temperature=WARM)
    )
    kernel, rest = arguments(layer)
    assert tuple(kernel.shape) == (kernel_size * kernel_size * 2, 4, 3, 3)
    poses, activations = call(layer)
    height, width = (6 - kernel_size) // strides + 1, (5 - kernel_size) // strides + 1
    assert poses.shape == (2, height, width, 4, 3, 3) and activations.shape == (2, height, width, 4)
    for row in range(height):
        for column in range(width):
            top, left = row * strides, column * strides
            patch = np.s_[:, top : top + kernel_size, left : left + kernel_size]
            expected = em_routing(
                tensor(POSES[patch].reshape(2, -1, 3, 3)),
                tensor(ACTIVATIONS[patch].reshape(2, -1)),
                kernel,
                **rest,
            )
            np.testing.assert_allclose(poses[:, row, column], array(expected[0]), atol=1e-4)
            np.testing.assert_allclose(activations[:, row, column], array(expected[1]), atol=1e-4)


def test_conv_capsules_move_with_their_input():
    layer = randomize(layers.ConvEMCapsules(4, 3, final_inverse_temperature=WARM))
    whole, part = call(layer), call(layer, POSES[:, 1:, 2:], ACTIVATIONS[:, 1:, 2:])
    for found, expected in zip(part, whole, strict=True):
        np.testing.assert_allclose(found, expected[:, 1:, 2:], atol=1e-4)


def test_maps_of_unknown_size():
    poses, activations = keras.Input((None, None, 2, 3, 3)), keras.Input((None, None, 2))
    conv = layers.ConvEMCapsules(4, 3, strides=2)
    middle = conv([poses, activations])
    assert [part.shape for part in middle] == [(None, None, None, 4, 3, 3), (None, None, None, 4)]
    for variant, components in zip(EM_VARIANTS, (9, 11), strict=True):
        top = layers.EMCapsules(5, variant=variant)
        outputs = top(middle)
        assert [part.shape for part in outputs] == [(None, 5, components), (None, 5)]
        model = keras.Model([poses, activations], outputs)
        for size in ((6, 5), (3, 4)):
            given = [POSES[:, : size[0], : size[1]], ACTIVATIONS[:, : size[0], : size[1]]]
            found = model.predict(given, verbose=0)
            expected = top(conv([tensor(value) for value in given]))
            for part, want in zip(found, expected, strict=True):
                np.testing.assert_allclose(part, array(want), atol=1e-4)


# EMCapsules


def votes_of(kernel):
    return np.einsum("bhwcpq,cjqr->bhwcjpr", POSES, array(kernel)).reshape(2, 6, 5, 2, 4, 9)


def test_class_capsules_add_the_coordinates_to_the_last_column():
    layer = randomize(layers.EMCapsules(4, final_inverse_temperature=WARM))
    kernel, rest = arguments(layer)
    assert tuple(kernel.shape) == (2, 4, 3, 3)
    votes = votes_of(kernel)
    for row in range(6):
        for column in range(5):
            votes[:, row, column, :, :, 2] += (row + 0.5) / 6  # element (0, 2) of the matrix
            votes[:, row, column, :, :, 5] += (column + 0.5) / 5  # element (1, 2)
    expected = em_routing_from_votes(
        tensor(votes.reshape(2, 60, 4, 9)), tensor(ACTIVATIONS.reshape(2, 60)), **rest
    )
    for found, want in zip(call(layer), expected, strict=True):
        np.testing.assert_allclose(found, array(want), atol=1e-4)


def test_class_capsules_of_the_article_append_the_coordinates_and_average_the_positions():
    layer = randomize(layers.EMCapsules(4, variant="article", final_inverse_temperature=WARM))
    kernel, rest = arguments(layer)
    assert tuple(rest["beta_u"].shape) == (4, 11)

    def formed(poses, kernel):
        """The same, all coordinates formed and each position a sample of its own."""
        votes = keras.ops.reshape(keras.ops.einsum("bhwcpq,cjqr->bhwcjpr", poses, kernel), (2, 6, 5, 2, 4, 9))
        rows, columns = np.mgrid[:6, :5]
        places = np.stack([(rows + 0.5) / 6, (columns + 0.5) / 5], axis=-1)[:, :, np.newaxis, np.newaxis]
        places = tensor(np.broadcast_to(places, (2, 6, 5, 2, 4, 2)))
        extended = keras.ops.reshape(keras.ops.concatenate([votes, places], axis=-1), (60, 2, 4, 11))
        routed = em_routing_from_votes(extended, tensor(ACTIVATIONS.reshape(60, 2)), **rest)
        return [keras.ops.mean(keras.ops.reshape(part, (2, 30, *part.shape[1:])), axis=1) for part in routed]

    def laid(poses, kernel):
        return layer.stateless_call(
            [kernel, *layer.trainable_variables[1:]], [], [poses, tensor(ACTIVATIONS)]
        )[0]

    poses, activations = call(layer)
    for found, expected in zip((poses, activations), formed(tensor(POSES), kernel), strict=True):
        np.testing.assert_allclose(found, array(expected), atol=1e-4)
    np.testing.assert_allclose(poses[:, :, 9:], np.full((2, 4, 2), 0.5), atol=1e-5)  # mean of all places
    np.testing.assert_allclose(activations.sum(axis=1), np.ones(2), atol=1e-5)

    def score(function):
        def total(poses, kernel):
            return sum(keras.ops.sum(part * keras.ops.cos(3.0 * part)) for part in function(poses, kernel))

        return total

    found, expected = (gradients(score(function), POSES, array(kernel)) for function in (laid, formed))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_costs_are_added_up_in_full_precision():
    # Votes of zero are exact in any precision; beside log(floor) bfloat16 does not tell these betas apart.
    options = dict(variant="article", final_inverse_temperature=20.0)
    layer = layers.EMCapsules(3, **options, dtype="mixed_bfloat16")
    full = layers.EMCapsules(3, **options)
    for each in (layer, full):
        each.build([POSES.shape, ACTIVATIONS.shape])
        kernel, beta_u, beta_a = each.get_weights()
        each.set_weights([kernel, beta_u + np.float32([[0.0], [0.002], [0.004]]), beta_a])
    found, expected = (call(each, np.zeros_like(POSES), ACTIVATIONS)[1] for each in (layer, full))
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=4e-3)


# Implementations


@pytest.mark.parametrize("variant", EM_VARIANTS)
def test_implementations_agree_and_only_the_fused_op_is_kept_from_xla(fused, variant):
    outputs = {}
    for implementation in ("fused", "reference"):
        options = dict(variant=variant, implementation=implementation)
        conv = randomize(layers.ConvEMCapsules(4, 3, 2, **options))
        middle = call(conv)
        top = randomize(layers.EMCapsules(3, **options), *(part.shape for part in middle))
        outputs[implementation] = [*middle, *call(top, *middle)]
        in_xla = implementation == "reference" or BACKEND != "tensorflow"
        assert conv.supports_jit == in_xla
        assert top.supports_jit == (in_xla or variant == "hinton2018")
    for found, expected in zip(*outputs.values(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


# Weights, gradients, errors


@pytest.mark.parametrize(
    "variant, conv, top",
    [("hinton2018", (8, 4), (8, 4)), ("article", (8 * 9, 4), (8 * 11, 4))],
)
def test_weights_and_their_initializers(variant, conv, top):
    for layer, children, betas in (
        (layers.ConvEMCapsules(8, 3, variant=variant), 18, conv),
        (layers.EMCapsules(8, variant=variant), 2, top),
    ):
        layer.build([POSES.shape, ACTIVATIONS.shape])
        kernel, beta_u, beta_a = layer.get_weights()
        assert kernel.shape == (children, 8, 3, 3) and beta_u.size == betas[0] and beta_a.shape == (8,)
        assert not beta_u.any() and not beta_a.any()
        # A normal of deviation 1, cut at two deviations, keeps .88 of its deviation.
        assert kernel.std() == pytest.approx(0.88, rel=0.2)
        assert np.mean(np.abs(kernel) <= 2 + 1e-5) > 0.99
        layer = type(layer)(8, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.5))
        layer.build([POSES.shape, ACTIVATIONS.shape])
        assert (layer.get_weights()[0] == 1.0).all()
        assert [float(array(loss)) for loss in layer.losses] == pytest.approx([0.5 * kernel.size])


@pytest.mark.parametrize("variant", EM_VARIANTS)
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_a_stack_has_finite_gradients_by_poses_and_activations(iterations, variant):
    options = dict(num_iterations=iterations, variant=variant)
    conv, top = layers.ConvEMCapsules(4, 3, 2, **options), layers.EMCapsules(3, **options)

    def score(poses, activations):
        poses, activations = top(conv([poses, activations]))
        return keras.ops.sum(poses[:, 0]) + keras.ops.sum(keras.ops.square(activations))

    score(tensor(POSES), tensor(ACTIVATIONS))  # builds the layers
    for scale in (1e-3, 1.0, 1e3):
        for activations in (ACTIVATIONS, np.zeros_like(ACTIVATIONS), np.ones_like(ACTIVATIONS)):
            found = gradients(score, POSES * scale, activations)
            assert all(np.isfinite(gradient).all() for gradient in found)
            assert np.abs(found[0]).max() > 0.0


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("ConvEMCapsules", dict(channels=0)),
        ("ConvEMCapsules", dict(channels=2, kernel_size=0)),
        ("ConvEMCapsules", dict(channels=2, strides=-1)),
        ("ConvEMCapsules", dict(channels=2, num_iterations=0)),
        ("EMCapsules", dict(num_capsules=0)),
        ("EMCapsules", dict(num_capsules=2, num_iterations=0)),
        ("PrimaryMatrixCapsules", dict(channels=0)),
        ("PrimaryMatrixCapsules", dict(pose_size=0)),
    ],
)
def test_sizes_below_one_are_refused(name, wrong):
    argument = next(f"{key}={value}" for key, value in wrong.items() if value < 1)
    with pytest.raises(ValueError, match=f"at least 1.*{argument}"):
        getattr(layers, name)(**wrong)


@pytest.mark.parametrize("layer", [layers.ConvEMCapsules, layers.EMCapsules])
def test_wrong_arguments_and_inputs_are_named(layer):
    with pytest.raises(ValueError, match=r"'hinton2018', 'article'.*variant=hinton$"):
        layer(2, variant="hinton")
    with pytest.raises(ValueError, match=r"'fused'.*implementation=quick"):
        layer(2, implementation="quick")
    with pytest.raises(ValueError, match=r"above 0.*final_inverse_temperature=0$"):
        layer(2, final_inverse_temperature=0)
    for shapes in (
        [POSES.shape],
        [POSES.shape, (2, 6, 5)],
        [POSES.shape, (2, 6, 5, 3)],
        [(2, 6, 5, 2, 3, 4), ACTIVATIONS.shape],
        [(2, 6, 5, None, 3, 3), (2, 6, 5, None)],
    ):
        with pytest.raises(ValueError, match=r"expects poses \[B, H, W, C, P, P\] and activations"):
            layer(2).build(shapes)


def test_too_small_maps_and_matrices_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size=6.*poses.shape=\(2, 6, 5, 2, 3, 3\)"):
        layers.ConvEMCapsules(2, 6).build([POSES.shape, ACTIVATIONS.shape])
    with pytest.raises(ValueError, match=r"at least 2.*\(2, 6, 5, 2, 1, 1\)"):
        layers.EMCapsules(2).build([(2, 6, 5, 2, 1, 1), ACTIVATIONS.shape])
    layers.EMCapsules(2, variant="article").build([(2, 6, 5, 2, 1, 1), ACTIVATIONS.shape])
