"""The REST routes of TensorFlow Serving, in a BentoML service.

    GET  /v1/models/NAME            whether the model is there
    GET  /v1/models/NAME/metadata   its signatures
    POST /v1/models/NAME:predict    {"signature_name", "instances" or "inputs"}

BentoML adds /healthz, /livez, /readyz and /metrics. The version in /v1/models/NAME/versions/1 is accepted.
The model and its limits come from the environment, because the service runs in a process of BentoML's.
"""

import asyncio
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tfinv.serving import json_body
from tfinv.serving.servable import Limits, RequestError, Servable

MODEL, NAME, LIMITS = "TFINV_SERVED_MODEL", "TFINV_SERVED_NAME", "TFINV_SERVED_LIMITS"
_STATUS = {"invalid": 400, "unknown": 404, "large": 413, "busy": 503}
_THREADS = 64


def environment(model: Path, name: str, limits: Limits) -> dict[str, str]:
    """Returns the variables from which `Predictor` learns what to serve."""
    return {MODEL: str(model), NAME: name, LIMITS: json.dumps(dataclasses.asdict(limits))}


def application(servable: Servable, name: str) -> Starlette:
    """Returns the routes as an ASGI application.

    Args:
        servable: The model.
        name: What it is called in the routes.
    """
    # Threads wait for their batch, so there are more than cores. But only one reads and writes JSON: many at
    # once would take the interpreter from each other, and the event loop must stay free to answer /healthz.
    pool, scribe = ThreadPoolExecutor(_THREADS), ThreadPoolExecutor(1)
    under_way: set[Request] = set()

    def known(request: Request) -> None:
        if request.path_params["name"] != name:
            raise RequestError(
                f"Unknown model. Expected {name}. Received: {request.path_params['name']}", "unknown"
            )

    async def status(request: Request) -> JSONResponse:
        known(request)
        state = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return JSONResponse({"model_version_status": [state]})

    async def metadata(request: Request) -> JSONResponse:
        known(request)
        signatures = {
            signature: {
                side: {key: _described(spec) for key, spec in specs.items()} for side, specs in sides.items()
            }
            for signature, sides in servable.signatures.items()
        }
        return JSONResponse({"model_spec": {"name": name, "version": "1"}, "metadata": signatures})

    async def predict(request: Request) -> Response:
        known(request)
        if len(under_way) >= servable.limits.max_waiting:
            raise RequestError("Too many requests are waiting; try again later.", "busy")
        under_way.add(request)
        try:
            body = await _body(request, servable.limits.max_body_bytes)
            run = asyncio.get_running_loop().run_in_executor
            inputs, signature, rows = await run(scribe, _read, servable, body)
            outputs = await run(pool, servable.predict, inputs, signature)
            return Response(await run(scribe, _write, outputs, rows), media_type="application/json")
        finally:
            under_way.remove(request)

    async def refuse(_: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        # Not JSONResponse, which cannot write half a surrogate pair that the request has as a name.
        content = json.dumps({"error": str(error)})
        return Response(content, _STATUS[error.kind], media_type="application/json")

    routes = []
    for version in ("", "/versions/1"):
        routes += [
            Route(f"/v1/models/{{name}}{version}:predict", predict, methods=["POST"]),
            Route(f"/v1/models/{{name}}{version}/metadata", metadata),
            Route(f"/v1/models/{{name}}{version}", status),
        ]
    return Starlette(routes=routes, exception_handlers={RequestError: refuse})


def _read(servable: Servable, body: bytes) -> tuple[dict[str, np.ndarray], str, bool]:
    """Returns the inputs, the signature's name, and whether the request is in rows."""
    request = json_body.parse(body)
    return json_body.arrays(request, servable), request.get("signature_name", ""), "instances" in request


def _write(outputs: dict[str, np.ndarray], rows: bool) -> bytes:
    answer = json_body.response(outputs, rows)
    try:
        return json.dumps(answer, allow_nan=False).encode()
    except ValueError:  # which JSON has no words for
        raise RequestError("The outputs for these inputs are not finite.") from None


async def _body(request: Request, limit: int) -> bytes:
    """Reads a body as far as the limit, and no further."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise RequestError(f"The body is too large. Expected at most {limit} bytes.", "large")
            parts.append(part)
    except ClientDisconnect:
        raise RequestError("The body ends before its end.") from None
    return b"".join(parts)


def _described(spec) -> dict[str, Any]:
    shape = None if spec.shape.rank is None else [-1 if side is None else side for side in spec.shape]
    return {"dtype": spec.dtype.name, "shape": shape}


class _Routes:
    """The ASGI application of a process that BentoML starts; imported without a model."""

    def __init__(self) -> None:
        self._application: Starlette | None = None

    def load(self) -> None:
        """Loads the model that the environment names."""
        limits = Limits(**json.loads(os.environ[LIMITS]))
        self._application = application(Servable(os.environ[MODEL], limits), os.environ[NAME])

    async def __call__(self, scope, receive, send) -> None:
        if self._application is None:
            raise RuntimeError("The service is not initialised.")
        await self._application(scope, receive, send)


_routes = _Routes()


@bentoml.service(workers=1)
@bentoml.asgi_app(_routes, path="/")
class Predictor:
    """The service; one process, in which all requests share their batches."""

    def __init__(self) -> None:
        _routes.load()  # before it is reported healthy
