"""Codes that a group of images shares: which image gets which, and where their gradients go."""

import keras
import numpy as np
import pytest

from tests.backend import array, gradients, tensor
from tfinv.layers import RepeatCodes

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_each_image_gets_the_code_of_its_group(groups):
    codes = RANDOM.normal(size=(groups, 5)).astype(np.float32)
    features = np.full((14, 3, 2), np.nan, np.float32)  # nothing but their number matters
    repeated = array(RepeatCodes()([tensor(codes), tensor(features)]))
    np.testing.assert_array_equal(repeated, codes.repeat(14 // groups, axis=0))
    symbolic = RepeatCodes()([keras.Input((5,)), keras.Input((3, 2))])
    assert symbolic.shape == (None, 5)


def test_no_samples_and_numbers_that_do_not_fit():
    for codes, features in ((0, 0), (3, 0)):
        found = RepeatCodes()([tensor(np.ones((codes, 5))), tensor(np.ones((features, 2)))])
        assert tuple(found.shape) == (0, 5)
    for codes in (4, 0):
        with pytest.raises(ValueError, match=f"divisor of the number of samples, 6. Received: {codes} codes"):
            RepeatCodes()([tensor(np.ones((codes, 5))), tensor(np.ones((6, 2)))])


def test_codes_that_are_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"needs codes \[G, E\]. Received: input_shape="):
        RepeatCodes()([tensor(np.arange(3.0)), tensor(np.ones((3, 2)))])


def test_codes_are_not_rounded():
    codes = tensor(np.float32([[1 + 2**-20]]))
    repeated = RepeatCodes(dtype="mixed_bfloat16")([codes, tensor(np.ones((2, 1)))])
    np.testing.assert_array_equal(array(repeated), np.full((2, 1), 1 + 2**-20, np.float32))
    symbolic = RepeatCodes(dtype="mixed_bfloat16")([keras.Input((5,)), keras.Input((3, 2))])
    assert symbolic.dtype == "float32"


def test_a_code_gets_the_gradient_of_its_whole_group():
    layer, weights = RepeatCodes(), np.arange(12, dtype=np.float32).reshape(6, 2)
    features = tensor(np.ones((6, 4)))
    (found,) = gradients(
        lambda codes: keras.ops.sum(layer([codes, features]) * tensor(weights)), np.ones((3, 2), np.float32)
    )
    np.testing.assert_array_equal(found, weights.reshape(3, 2, 2).sum(axis=1))
