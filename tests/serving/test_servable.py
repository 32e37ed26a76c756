"""A servable answers what the model answers, alone or in a batch with others, and names what it refuses."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.conftest import SIZE
from tfinv.errors import UsageError
from tfinv.serving import Limits, RequestError, Servable, servable


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, SIZE, SIZE, 1), np.float32)


def calls(servable):
    return int(servable.predict({}, "count")["calls"])


def png(image):
    return tf.io.encode_png(tf.cast(image * 255, tf.uint8)).numpy()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_answers_as_the_model(saved, count):
    servable, given = Servable(saved), images(count)
    outputs = servable.predict({"images": given})
    np.testing.assert_array_equal(outputs["scores"], given.max(axis=(2, 3)))
    assert [name.decode() for name in outputs["class_name"]] == [
        f"row {row}" for row in given.max(axis=(2, 3)).argmax(axis=1)
    ]


def test_two_inputs_keep_together(saved):
    servable, given = Servable(saved), images(3)
    parameters = np.array([[1, 0], [2, 0], [3, 0]])
    outputs = servable.predict({"parameter": parameters, "image": given}, "transform")
    np.testing.assert_allclose(outputs["image"] - given, np.ones_like(given) * parameters[:, :1, None, None])


def test_concurrent_requests_share_a_batch_and_each_gets_its_own_answer(saved):
    servable = Servable(saved, Limits(batch_timeout=0.3))
    servable.predict({"images": images(1)})
    before, found = calls(servable), {}

    def ask(seed):
        found[seed] = servable.predict({"images": images(seed % 3 + 1, seed)})["scores"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, scores in found.items():
        np.testing.assert_array_equal(scores, images(seed % 3 + 1, seed).max(axis=(2, 3)))
    assert len(found) == 16 and calls(servable) - before <= 4


def test_one_broken_image_fails_its_own_request_alone(saved):
    servable, answers = Servable(saved, Limits(batch_timeout=0.3)), []

    def ask(encoded):
        try:
            answers.append(
                servable.predict({"encoded": np.array([encoded], object)}, "classify_png")["scores"]
            )
        except RequestError as error:
            answers.append(str(error))

    good = [png(image) for image in images(4)]
    threads = [threading.Thread(target=ask, args=(text,)) for text in (*good, b"no image")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) == 1 and len(answers) == 5 and "\n" not in refused[0], refused


def test_requests_of_unequal_shape_do_not_share_a_batch(saved):
    servable, found = Servable(saved, Limits(batch_timeout=0.3)), {}

    def ask(length):
        found[length] = servable.predict({"rows": np.ones((1, length))}, "of_any_length")["total"]

    threads = [threading.Thread(target=ask, args=(length,)) for length in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {length: total.tolist() for length, total in found.items()} == {n: [n] for n in range(1, 5)}


def test_whole_numbers_and_truth_values_and_an_output_not_in_rows(saved):
    given = {"bytes": np.array([0, 5.0]), "flags": np.array([True, False])}
    answer = Servable(saved).predict(given, "whole")
    assert answer["negated"].tolist() == [255, 5] and answer["unit"].tolist() == [b"grey", b"level"]


def test_few_images_are_decoded_at_once(saved):
    servable, under_way, most = Servable(saved), [], []
    signature = servable._signatures["classify_png"]

    def slow(encoded):
        under_way.append(encoded)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.pop()
        return {"scores": encoded}

    signature._function = slow
    given = {"encoded": np.array([b"picture"], object)}
    threads = [threading.Thread(target=servable.predict, args=(given, "classify_png")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8 and max(most) == 2


def test_signatures_and_models_have_queues_of_their_own(saved):
    """The batching op gathers by name; what has the name of another would get its answers."""
    servables = [Servable(saved, Limits(batch_timeout=0.2)) for _ in range(2)]
    given, parameter = images(2), np.ones((2, 2))
    found = {}

    def ask(index, signature):
        inputs = {"images": given} if signature == "classify" else {"image": given, "parameter": parameter}
        found[index, signature] = servables[index].predict(inputs, signature)

    threads = [
        threading.Thread(target=ask, args=(index, signature))
        for index in (0, 1)
        for signature in ("classify", "transform")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        np.testing.assert_array_equal(found[index, "classify"]["scores"], given.max(axis=(2, 3)))
        np.testing.assert_allclose(found[index, "transform"]["image"], given + 1)
        assert calls(servables[index]) == 1


@pytest.mark.parametrize(
    ("signature", "inputs", "kind", "message"),
    [
        ("clasify", {"images": images(1)}, "unknown", "classify, .*Received: clasify"),
        ("classify", {}, "invalid", "Expected images. Received: nothing"),
        ("classify", {"image": images(1)}, "invalid", "Expected images. Received: image"),
        (
            "classify",
            {"images": images(1)[0]},
            "invalid",
            r"Expected \[any, 4, 4, 1\]. Received: \[4, 4, 1\]",
        ),
        ("classify", {"images": images(1) * np.nan}, "invalid", "finite"),
        ("classify", {"images": np.full((1, SIZE, SIZE, 1), 1e300)}, "invalid", "finite"),
        (
            "classify",
            {"images": np.full((1, SIZE, SIZE, 1), "a")},
            "invalid",
            "Expected float32. Received: <U1",
        ),
        ("classify", {"images": images(1) * 1j}, "invalid", "Expected float32. Received: complex"),
        ("classify", {"images": images(9)}, "large", "at most 8 a request. Received: 9"),
        ("classify_png", {"encoded": np.array(["text"], object)}, "invalid", "Expected bytes"),
        ("transform", {"image": images(2), "parameter": np.zeros((3, 2))}, "invalid", "Refused by the model"),
        *(
            ("whole", {"bytes": np.array([number]), "flags": np.array([True])}, "invalid", "Expected uint8")
            for number in (300, -1, 1.7, np.nan)
        ),
        (
            "whole",
            {"bytes": np.array([1]), "flags": np.array([1])},
            "invalid",
            "Expected bool. Received: int64",
        ),
    ],
)
def test_what_is_refused_is_named(saved, signature, inputs, kind, message):
    servable = Servable(saved, Limits(max_batch_size=8))
    with pytest.raises(RequestError, match=message) as caught:
        servable.predict(inputs, signature)
    assert caught.value.kind == kind and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "{{function_node f}} assertion failed: [Expected PNG.] [Condition x <= y] [[{{node map}}]]",
            "Expected PNG.",
        ),
        (
            "Graph execution error:\n\nDetected at node g defined at (most recent call last):\n"
            "<stack traces unavailable>\nInvalid PNG data, size 60\n\t [[{{node g}}]] [Op:f]",
            "Invalid PNG data, size 60",
        ),
        ("{{function_node f}} Invalid PNG data\n [[{{node g}}]] [Op:f]", "Invalid PNG data"),
        ("", "InvalidArgumentError"),
    ],
)
def test_reasons_of_the_model_lose_what_is_of_its_graph(message, reason):
    error = tf.errors.InvalidArgumentError(None, None, message)
    assert servable._reason(error) == reason


def test_no_model(tmp_path):
    with pytest.raises(UsageError, match="Cannot read a SavedModel"):
        Servable(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", 0),
        ("max_body_bytes", 0),
        ("max_waiting", 0),
        *(("batch_timeout", value) for value in (-1.0, float("nan"), float("inf"), 1e20)),
    ],
)
def test_limits_out_of_bounds_are_named_as_the_options_are(name, value):
    with pytest.raises(UsageError, match=rf"^Invalid value for {name}\. .*Received: {name}="):
        Limits(**{name: value})
