"""TensorFlow Serving's JSON in both forms; what is no such thing is refused in one line."""

import base64
import json

import numpy as np
import pytest

from tests.serving.conftest import SIZE
from tests.serving.test_servable import images, png
from tfinv.serving import RequestError, Servable, json_body


def ask(saved, request):
    servable = Servable(saved)
    parsed = json_body.parse(json.dumps(request).encode())
    outputs = servable.predict(json_body.arrays(parsed, servable), parsed.get("signature_name", ""))
    return json_body.response(outputs, rows="instances" in parsed)


def test_rows_and_columns(saved):
    given = images(3)
    expected = given.max(axis=(2, 3))
    answer = ask(saved, {"instances": given.tolist()})["predictions"]
    np.testing.assert_allclose([row["scores"] for row in answer], expected, rtol=1e-6)
    assert answer[0]["class_name"] == f"row {expected[0].argmax()}"
    assert answer == ask(saved, {"instances": [{"images": image.tolist()} for image in given]})["predictions"]
    for inputs in (given.tolist(), {"images": given.tolist()}):
        np.testing.assert_allclose(ask(saved, {"inputs": inputs})["outputs"]["scores"], expected, rtol=1e-6)
    two = {"image": given.tolist(), "parameter": [[1, 0]] * 3}
    np.testing.assert_allclose(
        ask(saved, {"signature_name": "transform", "inputs": two})["outputs"], given + 1, rtol=1e-6
    )
    assert ask(saved, {"instances": []}) == {"predictions": []}
    image, parameter = given[0].tolist(), [1, 0]
    both = [{"image": image, "parameter": parameter}, {"parameter": parameter, "image": image}]
    assert len(ask(saved, {"signature_name": "transform", "instances": both})["predictions"]) == 2


def test_outputs_that_are_no_rows_are_given_by_name_alone(saved):
    request = {"signature_name": "whole", "inputs": {"bytes": [0, 5, 7], "flags": [True, False, False]}}
    assert ask(saved, request)["outputs"] == {"negated": [255, 5, 7], "unit": ["grey", "level"]}
    rows = [{"bytes": 0, "flags": True}] * 3
    with pytest.raises(RequestError, match='Expected "inputs"'):
        ask(saved, {"signature_name": "whole", "instances": rows})


def test_bytes_are_base64(saved):
    encoded = {"b64": base64.b64encode(png(images(1)[0])).decode()}
    request = {"signature_name": "classify_png", "instances": [encoded, encoded]}
    assert np.shape(ask(saved, request)["predictions"]) == (2, SIZE)
    named = {"signature_name": "classify_png", "instances": [{"encoded": encoded}]}
    assert np.shape(ask(saved, named)["predictions"]) == (1, SIZE)


MALFORMED = {
    b"": "no JSON",
    b'{"instances": [[1, 2': "no JSON",
    b"[" * 100_000: "no JSON",
    b'{"instances": [[[[NaN]]]]}': "NaN",
    b"[1]": "Expected an object",
    b"{}": "either",
    b'{"instances": [], "inputs": []}': "either",
    b'{"instances": 3}': "Expected a list",
    b'{"signature_name": 3, "instances": []}': "signature_name",
    b'{"instances": [[1, 2], [3]]}': "equal lengths",
    b'{"instances": [{"images": 1}, {"image": 1}]}': "same names",
    b'{"instances": [["a"]]}': "Expected numbers. Received: str",
    b'{"instances": [null]}': "Expected numbers. Received: NoneType",
    # NumPy would make each as long as the text.
    b'{"instances": [[[["' + 99999 * b"a" + b'"],' + 99999 * b"[0]," + b"[0]]]]}": "numbers. Received: str",
    b'{"inputs": {"\\ud800\\n": [1]}}': "Expected images. Received",
    b'{"inputs": {"%s": [1]}}' % (b"x" * 50_000): "Expected images",
    b'{"inputs": {"images": {"b64": "AAAA"}}}': "Invalid",
    b'{"inputs": [[[[1e400]]]]}': "shape|finite",
    b'{"inputs": [%s]}' % (b"1" * 5_000): "no JSON",
    b'{"inputs": [[[[[true]]]]]}': "shape",
    b'{"signature_name": "transform", "instances": [1]}': "image, parameter",
    b'{"signature_name": "classify_png", "instances": ["text"]}': "b64",
    b'{"signature_name": "classify_png", "instances": [{"b64": "###"}]}': "base64",
    b'{"signature_name": "classify_png", "instances": [{"b64": "\\u00e9"}]}': "Expected base64",
    b'{"signature_name": "classify_png", "instances": [{"b64": "AAAA"}]}': "Refused by the model",
}


@pytest.mark.parametrize("body", MALFORMED, ids=list(MALFORMED.values()))
def test_malformed(saved, body):
    servable = Servable(saved)
    with pytest.raises(RequestError, match=MALFORMED[body]) as caught:
        parsed = json_body.parse(body)
        servable.predict(json_body.arrays(parsed, servable), parsed.get("signature_name", ""))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_bytes_that_are_no_text_are_base64():
    answer = json_body.response({"png": np.array([b"\x89PNG", b"text"], object)}, rows=True)
    assert answer == {"predictions": [{"b64": base64.b64encode(b"\x89PNG").decode()}, "text"]}
