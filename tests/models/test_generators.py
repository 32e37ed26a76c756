"""HyperNets and generative capsules: contract of generators, codes of groups, precision, saving, cost."""

import keras
import numpy as np
import pytest

from tests.backend import BACKEND, array, tensor
from tfinv import models
from tfinv.errors import UsageError
from tfinv.models import generative_capsules, hypernet

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (4, 12, 12, 1)).astype(np.float32)
CODES = RANDOM.normal(size=(2, 2)).astype(np.float32)
SMALL = {
    ("hypernet", "basic"): dict(control_units=(3,)),
    ("hypernet", "convolutional"): dict(control_units=(3,), filters=(2, 3), core_units=5),
    ("hypernet", "address"): dict(control_units=(3,), filters=(2, 4)),
    ("generative_capsules", "addressed"): dict(capsules=5, capsule_length=4),
    ("generative_capsules", "continuous"): dict(capsules=4, capsule_length=3, features=6),
    ("generative_capsules", "digits"): dict(capsules=3, capsule_length=5, choices=7, pose_size=2),
}
NARROW = dict(encoder_filters=(2, 3), encoder_units=8, decoder_filters=2, control_units=(3,))


def test_presets_have_the_sizes_of_the_authors_networks():
    """Shapes of kernels by layer, of which the names are ours."""

    def shapes(name, preset):
        model = models.build_generator(name, (28, 28, 1), (28, 28, 1), 2, preset)
        return [tuple(weight.shape) for weight in model.weights if len(weight.shape) > 1], model

    kernels, _ = shapes("hypernet", "convolutional")
    assert {(5, 5, 1, 10), (5, 5, 10, 20), (980, 200), (200, 200), (200, 980), (64, 200 * 200)} <= set(
        kernels
    )
    kernels, model = shapes("hypernet", "address")
    assert model.get_layer("encoder").output.shape == (None, 7, 7, 32) and (3, 7 * 7 * 2) in kernels
    for preset, capsules in {"addressed": (128, 4), "digits": (20, 10)}.items():
        kernels, model = shapes("generative_capsules", preset)
        assert model.get_layer("encoder").output.shape == (None, *capsules)
    assert {(256, 10), (20, 256)} <= set(kernels)  # a choice of ten, a pose of ten, and both together


@pytest.fixture(params=SMALL, ids=" ".join, name="make")
def make_fixture(request):
    """A function that builds a small variant, with its weights as training could have made them."""
    name, variant = request.param
    config = SMALL[request.param] | (NARROW if name == "generative_capsules" else {})

    def make(input_shape=(12, 12, 1), output_shape=(12, 12, 1), code_size=2, **more):
        keras.utils.set_random_seed(0)
        model = models.build_generator(
            name, input_shape, output_shape, code_size, variant=variant, **config | more
        )
        for number, weight in enumerate(model.weights):
            noise = np.random.default_rng(number).normal(size=weight.shape)
            weight.assign(weight + 0.1 * noise.astype("float32"))
        return model

    yield make
    keras.backend.clear_session()


def render(model, images=IMAGES, codes=CODES):
    return array(model({"image": images, "code": codes})["image"])


def test_presets_name_all_variants():
    for module, variants in (
        (hypernet, {"basic", "convolutional", "address"}),
        (generative_capsules, {"addressed", "continuous", "digits"}),
    ):
        assert module.TASK == "generation"
        assert set(module.PRESETS) - {"compensation"} == {"quick"} | variants
        for name in variants:
            assert module.PRESETS[name].model.variant == name


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "code_size"),
    [((12, 12, 1), (12, 12, 1), 2), ((9, 14, 2), (21, 18, 2), 6), ((16, 12, 3), (16, 12, 3), 1)],
)
def test_generator_maps_images_and_codes_of_groups_to_images(make, input_shape, output_shape, code_size):
    model = make(input_shape, output_shape, code_size)
    assert model.output["image"].shape == (None, *output_shape)
    for count, groups in ((1, 1), (3, 3), (6, 2)):
        images = RANDOM.uniform(-1, 1, (count, *input_shape)).astype("float32")
        rendered = render(model, images, RANDOM.normal(size=(groups, code_size)).astype("float32"))
        assert rendered.shape == (count, *output_shape)
        assert np.isfinite(rendered).all() and np.abs(rendered).max() <= 1.0 + 1e-6


def test_shared_codes_render_what_repeated_ones_do(make):
    model = make()
    shared = render(model)
    np.testing.assert_allclose(shared, render(model, codes=np.repeat(CODES, 2, axis=0)), atol=1e-5)
    assert np.abs(shared - render(model, codes=CODES[::-1].copy())).max() > 1e-4


def test_image_and_code_meet_in_the_decoder_only(make):
    """What evaluation relies on when it encodes each image once."""
    model = make()
    assert {layer.name for layer in model.layers} - {"image", "code"} == {"encoder", "decoder"}
    latents = model.get_layer("encoder")(tensor(IMAGES))
    rendered = model.get_layer("decoder")({"latent": latents, "code": tensor(CODES)})
    np.testing.assert_allclose(array(rendered), render(model), atol=1e-6)


def test_saved_and_loaded_generator_renders_the_same(make, tmp_path):
    model = make(output_shape=(20, 18, 1))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(render(keras.models.load_model(tmp_path / "model.keras")), render(model))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_renders_nearly_the_same_in_float32(make, policy):
    expected = render(make())
    keras.config.set_dtype_policy(policy)
    try:
        outputs = make()({"image": IMAGES, "code": CODES})["image"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    np.testing.assert_allclose(array(outputs), expected, atol=0.01 if policy == "mixed_float16" else 0.08)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on torch trains too slowly for a test")
def test_every_weight_learns(make):
    model = make()
    before = model.get_weights()
    model.compile("adam", {"image": "mse"})
    model.fit({"image": IMAGES, "code": np.repeat(CODES, 2, 0)}, {"image": -IMAGES}, epochs=2, verbose=0)
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.isfinite(new).all() and np.abs(new - old).max() > 0.0, weight.path


# Single variants


def test_basic_is_linear_and_renders_the_background_as_such():
    model = models.build_generator("hypernet", (6, 5, 2), (7, 8, 2), 2, "basic", control_units=(4,))
    for weight in model.weights:
        weight.assign(RANDOM.normal(size=weight.shape))
    first, second = RANDOM.uniform(-1, 1, (2, 2, 6, 5, 2)).astype("float32")
    mean = render(model, (first + second) / 2)
    np.testing.assert_allclose(mean, (render(model, first) + render(model, second)) / 2, atol=1e-5)
    np.testing.assert_allclose(render(model, np.full_like(first, -1.0)), -1.0, atol=1e-5)


def test_cost_of_basic_is_what_its_module_says():
    if BACKEND != "jax":
        pytest.skip("only JAX counts operations")
    import jax

    model = models.build_generator("hypernet", (28, 28, 1), (28, 28, 1), 2, "basic")
    for images_per_code, millions in ((1, 80), (16, 6.1)):
        shapes = {"image": (32, 28, 28, 1), "code": (32 // images_per_code, 2)}
        arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        analysis = jax.jit(lambda inputs: model(inputs)["image"]).lower(arrays).compile().cost_analysis()
        flops = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
        assert flops / 32 == pytest.approx(millions * 1e6, rel=0.1)


def test_untrained_address_network_reads_every_cell_in_its_place_on_any_canvas():
    model = models.build_generator("hypernet", (12, 12, 1), (20, 28, 1), 2, "address")
    field = model.get_layer("decoder").get_layer("addresses")
    codes = np.concatenate([CODES, np.ones((2, 1), np.float32)], axis=1)
    expected = np.stack(np.mgrid[:5, :7], axis=-1).reshape(1, 35, 2)
    np.testing.assert_allclose(
        array(field.addresses(tensor(codes), (5, 7))), np.repeat(expected, 2, 0), atol=1e-5
    )


@pytest.mark.parametrize(("name", "variant"), sorted(SMALL.keys() - {("hypernet", "basic")}), ids=" ".join)
def test_untrained_networks_that_draw_begin_lighter_over_the_image_than_on_a_canvas(name, variant):
    light = 0.5 if name == "hypernet" else 0.1
    for size, share in ((12, 1.0), (28, (12 / 28) ** 2)):
        model = models.build_generator(name, (12, 12, 1), (size, size, 1), 2, variant)
        drawing = [layer for layer in model.get_layer("decoder").layers if "transpose" in layer.name][-1]
        drawing.kernel.assign(0 * drawing.kernel)
        np.testing.assert_allclose(render(model), -1 + light * share, rtol=1e-5)


def test_compensation_takes_the_transformed_image_alone():
    for variant in ("address", "convolutional", "basic"):
        model = models.build_generator(
            "hypernet", (12, 12, 1), (12, 12, 1), 2, variant=variant, control="image", control_units=(3,)
        )
        assert set(model.input) == {"image"} and model.output["image"].shape == (None, 12, 12, 1)
        rendered = array(model({"image": IMAGES})["image"])
        codes = model.get_layer("control")(tensor(IMAGES))
        given = {"latent": model.get_layer("encoder")(tensor(IMAGES)), "code": codes}
        assert tuple(codes.shape) == (4, 2)
        np.testing.assert_allclose(rendered, array(model.get_layer("decoder")(given)), atol=1e-6)


def test_unknown_variants_are_named():
    with pytest.raises(UsageError, match=r"basic, convolutional, address.*cubic"):
        models.build_generator("hypernet", (8, 8, 1), (8, 8, 1), 2, variant="cubic")
    with pytest.raises(UsageError, match=r"addressed, continuous, digits.*cubic"):
        models.build_generator("generative_capsules", (8, 8, 1), (8, 8, 1), 2, variant="cubic")
    with pytest.raises(UsageError, match=r"for control\. Expected one of code, image\. Received: cod"):
        models.build_generator("hypernet", (8, 8, 1), (8, 8, 1), 2, control="cod")
    with pytest.raises(UsageError, match=r"keeps channels.*\(8, 8, 3\)"):
        models.build_generator("hypernet", (8, 8, 1), (8, 8, 3), 2, "basic")
