"""Load test of both servers on loopback, beside calling the model directly.

    python benchmarks/serving.py saved_models/efficient_capsnet-mnist-rotate-34-s0
    python benchmarks/serving.py MODEL --requests 1000 --csv serving.csv

Every request is one image; each of 16 clients sends its next when it has its answer. First every server must
answer as the model does. Prints, and writes with --csv, the median and the 99th percentile of the time to an
answer, and answers a second. Requests are encoded beforehand. Direct calls: one thread, one image a call,
then batches of 16.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from tfinv import cli

SCRIPT = Path(__file__).parent.parent / "scripts" / "serve.py"
NAME, PORT, CLIENTS = "served", 8765, 16


def main(model: tyro.conf.Positional[Path], requests: int = 10_000, csv: Path | None = None) -> None:
    """Measures.

    Args:
        model: Run directory of a recogniser.
        requests: Requests to each server.
        csv: Where to write the table.
    """
    from tfinv.serving import Servable

    servable = Servable(model / "export")
    shape = servable.inputs("classify")["images"].shape[1:]
    images = np.random.default_rng(0).random((64, *shape), np.float32)
    expected = servable.predict({"images": images}, "classify")["scores"]
    rows = [direct(model, images, min(requests, 2000), size) for size in (1, CLIENTS)]
    for grpc in (False, True):
        rows.append(served(model, grpc, images, expected, requests))
    table = pd.DataFrame(rows)
    if csv:
        table.to_csv(csv, index=False)
    shown = Table(title=f"{requests} requests of one image, {CLIENTS} clients, {os.cpu_count()} cores")
    for column in table.columns:
        shown.add_column(column, justify="left" if column == "how" else "right")
    for row in rows:
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(shown)


def direct(model, images, count, size):
    """Calls the loaded model in this process, past the batching that a server adds."""
    import tensorflow as tf

    function, times = tf.saved_model.load(str(model / "export")).signatures["classify"], []
    for index in range(count // size + 20):
        batch = tf.constant(np.take(images, range(index, index + size), axis=0, mode="wrap"))
        start = time.perf_counter()
        function(images=batch)["scores"].numpy()
        times.append(time.perf_counter() - start)
    return row(f"direct, {size} a call", times[20:], sum(times[20:]), size)


def row(how, times, seconds, images=1):
    """One row of the table from the seconds of each call."""
    median, slow = np.percentile(times, [50, 99]) * 1e3
    return {
        "how": how,
        "p50 [ms]": float(median),
        "p99 [ms]": float(slow),
        "images a second": len(times) * images / seconds,
        "errors": 0,
    }


def served(model, grpc, images, expected, count):
    """Starts a server, checks its answers, and sends it `count` requests."""
    command = [sys.executable, str(SCRIPT), str(model), "--name", NAME, "--port", str(PORT)]
    process = subprocess.Popen([*command, *(["--grpc"] if grpc else [])], stdout=subprocess.DEVNULL)
    try:
        client = grpc_client if grpc else rest_client
        wait(client, images, process)
        ask, scores = client(images)
        found = [scores(ask(index)) for index in range(len(images))]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        times, errors = [], []

        ready = threading.Barrier(CLIENTS + 1)

        def work(number):
            ask, _ = client(images)  # encodes the requests
            ready.wait()
            for index in range(number, count, CLIENTS):
                start = time.perf_counter()
                try:
                    ask(index % len(images))
                    times.append(time.perf_counter() - start)
                except Exception as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        ready.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return row("gRPC" if grpc else "REST", times, time.perf_counter() - start) | {"errors": len(errors)}
    finally:
        process.terminate()
        process.wait()


def wait(client, images, process):
    """Waits for the first answer."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("The server ended.")
        with contextlib.suppress(Exception):
            client(images)[0](0)
            return
        time.sleep(0.2)
    raise SystemExit("The server did not start.")


def rest_client(images):
    """Returns two functions: from the place of an image to its answer, and from that to scores."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    bodies = [json.dumps({"signature_name": "classify", "instances": [image.tolist()]}) for image in images]

    def ask(index):
        connection.request("POST", f"/v1/models/{NAME}:predict", bodies[index])
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer)
        return answer

    return ask, lambda answer: json.loads(answer)["predictions"][0]["scores"]


def grpc_client(images):
    """The same by gRPC."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{PORT}"))
    requests = []
    for image in images:
        requests.append(predict_pb2.PredictRequest())
        requests[-1].model_spec.name, requests[-1].model_spec.signature_name = NAME, "classify"
        requests[-1].inputs["images"].CopyFrom(tf.make_tensor_proto(image[None]))

    def ask(index):
        return stub.Predict(requests[index], timeout=60)

    return ask, lambda answer: tf.make_ndarray(answer.outputs["scores"])[0]


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(lambda: cli.parse(main, __doc__))
