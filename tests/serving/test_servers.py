"""Both servers as their users meet them: started by the script, asked, fed rubbish, stopped."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.conftest import ENVIRONMENT, ROOT
from tests.serving.test_json_body import MALFORMED
from tests.serving.test_servable import images

pytestmark = pytest.mark.serve
START_SECONDS = 180
MAX_BATCH, MAX_BYTES = 8, 100_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(saved, *arguments):
    """Runs scripts/serve.py; yields its process and port."""
    port = free_port()
    limits = ["--max-batch-size", MAX_BATCH, "--max-body-bytes", MAX_BYTES]
    command = [sys.executable, ROOT / "scripts" / "serve.py", saved, "--port", port, *limits, *arguments]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process, port
    finally:
        process.terminate()  # killed, it would leave the processes it started
        process.wait(60)


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


def wait_until(ready, process):
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            pytest.fail(f"The server ended: {process.stdout.read()}")
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.2)
    pytest.fail("The server did not start.")


@pytest.fixture(scope="module")
def rest(saved):
    with started(saved) as (process, port):
        wait_until(lambda: ask(port, "GET", "/healthz")[0] == 200, process)
        yield port


PREDICT = "/v1/models/bright:predict"


def test_rest_predicts_and_describes(rest):
    given = images(3)
    for path in (PREDICT, "/v1/models/bright/versions/1:predict"):
        status, body = ask(rest, "POST", path, json.dumps({"instances": given.tolist()}))
        scores = [row["scores"] for row in json.loads(body)["predictions"]]
        assert status == 200
        np.testing.assert_allclose(scores, given.max(axis=(2, 3)), rtol=1e-6)
    status, body = ask(rest, "GET", "/v1/models/bright")
    assert status == 200 and json.loads(body)["model_version_status"][0]["state"] == "AVAILABLE"
    status, body = ask(rest, "GET", "/v1/models/bright/metadata")
    inputs = json.loads(body)["metadata"]["classify"]["inputs"]
    assert status == 200 and inputs == {"images": {"dtype": "float32", "shape": [-1, 4, 4, 1]}}


def test_rest_refuses_in_one_line_and_lives_on(rest):
    bodies = [*MALFORMED, b"x" * (MAX_BYTES + 1), json.dumps({"instances": images(MAX_BATCH + 1).tolist()})]
    for body in bodies:
        status, answer = ask(rest, "POST", PREDICT, body)
        assert status in (400, 413), (body[:40], answer)
        error = json.loads(answer)["error"]
        assert "\n" not in error and "Traceback" not in error
    assert ask(rest, "POST", "/v1/models/dark:predict", b"{}")[0] == 404
    assert ask(rest, "GET", "/v1/nothing")[0] == 404
    # A body that promises more than it brings.
    with socket.create_connection(("127.0.0.1", rest)) as connection:
        connection.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n".encode() + b'{"in'
        )
    test_rest_predicts_and_describes(rest)


def test_rest_listens_on_this_machine_alone(rest):
    others = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {
        "127.0.0.1",
        "127.0.1.1",
    }
    for address in others:
        with pytest.raises(OSError), socket.create_connection((address, rest), timeout=5):
            pass
    with open("/proc/net/tcp") as table:
        local = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert f"0100007F:{rest:04X}" in local and f"00000000:{rest:04X}" not in local


@pytest.mark.slow
def test_rest_stops_gracefully(saved):
    # Requests wait a second for others, so that one is under way when the server is told to stop.
    with started(saved, "--batch-timeout", 1.0, "--max-waiting", 1) as (process, port):
        wait_until(lambda: ask(port, "GET", "/healthz")[0] == 200, process)
        answers = []
        body = json.dumps({"instances": images(1).tolist()})
        asking = threading.Thread(target=lambda: answers.append(ask(port, "POST", PREDICT, body)[0]))
        asking.start()
        time.sleep(0.4)
        status, refused = ask(port, "POST", PREDICT, body)
        assert status == 503 and b"Too many requests" in refused
        assert ask(port, "GET", "/healthz")[0] == 200, "it is well, though it has enough to do"
        process.send_signal(signal.SIGTERM)
        asking.join(30)
        output, _ = process.communicate(timeout=60)
        assert answers == [200] and "Traceback" not in output, output
        with pytest.raises(OSError):
            ask(port, "GET", "/healthz")


def test_grpc_from_start_to_stop(saved):
    import grpc
    import tensorflow as tf
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    # Requests wait for others, so that one is under way when the server is told to stop.
    with started(saved, "--grpc", "--batch-timeout", 0.5, "--max-waiting", 2) as (process, port):
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(START_SECONDS)
        state = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert state.status == health_pb2.HealthCheckResponse.SERVING
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

        def request(name="bright", signature="", outputs=(), **inputs):
            message = predict_pb2.PredictRequest()
            message.model_spec.name, message.model_spec.signature_name = name, signature
            message.output_filter.extend(outputs)
            for key, value in inputs.items():
                message.inputs[key].CopyFrom(value)
            return message

        given = images(3)
        answer = predict(request(images=tf.make_tensor_proto(given), outputs=["scores"]))
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["scores"]), given.max(axis=(2, 3)))
        assert list(answer.outputs) == ["scores"] and answer.model_spec.signature_name == "classify"
        vast = tf.make_tensor_proto(given)
        vast.tensor_shape.dim[0].size = 10**12
        short = tf.make_tensor_proto(given)
        short.tensor_content = short.tensor_content[:-4]
        refused = {
            "dark": (request("dark"), "NOT_FOUND"),
            "clasify": (request(signature="clasify"), "NOT_FOUND"),
            "Received: nothing": (request(), "INVALID_ARGUMENT"),
            "image": (request(image=vast), "INVALID_ARGUMENT"),
            "at most 8": (request(images=vast), "RESOURCE_EXHAUSTED"),
            "Invalid value for images": (request(images=short), "INVALID_ARGUMENT"),
            "Invalid shape": (request(images=tf.make_tensor_proto(given[0])), "INVALID_ARGUMENT"),
            "finite": (request(images=tf.make_tensor_proto(given * np.nan)), "INVALID_ARGUMENT"),
            "Expected float32": (
                request(images=tf.make_tensor_proto([[[["a"]] * 4] * 4])),
                "INVALID_ARGUMENT",
            ),
            "score": (request(images=tf.make_tensor_proto(given), outputs=["score"]), "INVALID_ARGUMENT"),
        }
        for message, (wrong, code) in refused.items():
            with pytest.raises(grpc.RpcError) as caught:
                predict(wrong)
            assert caught.value.code().name == code and message in caught.value.details(), message
            assert "\n" not in caught.value.details()
        pending = [predict.future(request(images=tf.make_tensor_proto(given))) for _ in range(2)]
        time.sleep(0.2)
        with pytest.raises(grpc.RpcError) as caught:
            predict(request(images=tf.make_tensor_proto(given)))
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        process.send_signal(signal.SIGTERM)
        assert [len(tf.make_ndarray(one.result(30).outputs["scores"])) for one in pending] == [3, 3]
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in output, output


def test_bad_command_lines_get_a_line(saved, tmp_path, rest, start_script):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "saved_model.pb").write_text("no model")
    cases = (
        ([tmp_path], "No SavedModel in"),
        ([broken], "Cannot read a SavedModel from"),
        ([saved, "--port", rest], "Cannot listen on"),
        ([saved, "--port", "99999"], "port=99999"),
        ([saved, "--max-batch-size", "0"], "max_batch_size=0"),
    )
    # All at once: what takes the time is the imports.
    processes = [start_script("serve.py", *arguments, cwd=tmp_path) for arguments, _ in cases]
    for process, (_, message) in zip(processes, cases, strict=True):
        text = process.communicate()[1]
        errors = [line for line in text.splitlines() if not line.startswith(("I0", "WARNING: All"))]
        assert process.returncode == 2 and len(errors) == 1 and message in errors[0], text
