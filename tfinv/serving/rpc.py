"""TensorFlow Serving's gRPC: Predict, and the standard health service."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfinv.serving.servable import RequestError, Servable, check_shape

_CODES = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown": grpc.StatusCode.NOT_FOUND,
    "large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "busy": grpc.StatusCode.UNAVAILABLE,
}
_THREADS = 64


def make_server(servable: Servable, name: str, address: str) -> tuple[grpc.Server, int]:
    """Returns a server that is not started yet, and its port.

    Args:
        servable: The model.
        name: What requests call it.
        address: Host and port; port 0 for a free one.
    """
    limit = servable.limits.max_body_bytes
    options = [("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 0)]
    server = grpc.server(
        ThreadPoolExecutor(_THREADS),
        options=options,
        maximum_concurrent_rpcs=servable.limits.max_waiting,  # beyond, it answers RESOURCE_EXHAUSTED
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predictor(servable, name), server)
    state = health.HealthServicer()
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    return server, server.add_insecure_port(address)


class _Predictor(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, servable: Servable, name: str):
        self._servable, self._name = servable, name

    def Predict(self, request, context):  # noqa: N802, the name in the protocol
        try:
            return self._predict(request)
        except RequestError as error:
            context.abort(_CODES[error.kind], str(error))

    def _predict(self, request: Any) -> Any:
        asked = request.model_spec
        if asked.name != self._name:
            raise RequestError(f"Unknown model. Expected {self._name}. Received: {asked.name}", "unknown")
        specs = self._servable.inputs(asked.signature_name)
        inputs = {key: self._array(key, value, specs.get(key)) for key, value in request.inputs.items()}
        outputs = self._servable.predict(inputs, asked.signature_name)
        wanted = list(request.output_filter) or list(outputs)
        unknown = [key for key in wanted if key not in outputs]
        if unknown:
            raise RequestError(
                f"Unknown output. Expected some of {', '.join(outputs)}. Received: {', '.join(unknown)}"
            )
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = self._name
        answer.model_spec.signature_name = asked.signature_name or self._servable.default
        answer.model_spec.version.value = 1
        for key in wanted:
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return answer

    def _array(self, name: str, value: Any, spec: tf.TensorSpec | None) -> np.ndarray:
        shape = [side.size for side in value.tensor_shape.dim]
        if value.tensor_shape.unknown_rank or any(side < 0 for side in shape):
            raise RequestError(f"Invalid shape of {name}. Expected a known one.")
        if spec is not None:  # a message of a few bytes may name any shape
            check_shape(name, spec, shape, self._servable.limits)
        elif len(shape) > 8 or np.prod(shape, dtype=float) > 2**20:
            raise RequestError(f"Unknown input {name}.")
        try:
            return tf.make_ndarray(value)
        except (KeyError, TypeError, ValueError) as error:  # KeyError: of a type that NumPy lacks
            raise RequestError(f"Invalid value for {name}: {str(error)[:200]}") from None
