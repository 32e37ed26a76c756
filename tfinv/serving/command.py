"""Starts a server and stops it gracefully."""

import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path

import tyro

from tfinv import runs
from tfinv.config import check_range
from tfinv.errors import UsageError
from tfinv.serving.servable import Limits, Servable

_LOCAL = "127.0.0.1"
# TensorFlow Serving's own.
_REST_PORT, _GRPC_PORT = 8501, 8500
_GRACE_SECONDS = 10.0
_NEEDED = ("bentoml", "tensorflow_serving", "grpc_health")
_DEFAULT_LIMITS = Limits()


def serve(
    model: tyro.conf.Positional[Path],
    grpc: bool = False,
    host: str = _LOCAL,
    port: int | None = None,
    name: str = "",
    limits: Limits = _DEFAULT_LIMITS,
) -> None:
    """Serves a model until it is told to stop, then finishes what is under way.

    Args:
        model: Run directory or SavedModel folder.
        grpc: Speak gRPC in place of REST.
        host: Address to listen on; 0.0.0.0 for all, without any authentication.
        port: Port; 8501 for REST and 8500 for gRPC if not given.
        name: What requests call the model; its folder's name if not given.
        limits: What one request may cost.

    Raises:
        UsageError: If there is no such model, the port is taken, or the extra is missing.
    """
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"Serving needs {', '.join(missing)}: pip install 'tfinv[serve]'")
    check_range("port", 1 if port is None else port, low=1, high=65535)
    folder = model if (model / "saved_model.pb").is_file() else model / runs.EXPORT
    if not (folder / "saved_model.pb").is_file():
        unexported = (model / runs.MODEL).is_file()
        hint = f" Make one: python scripts/export_saved_model.py {model}" if unexported else ""
        raise UsageError(
            f"No SavedModel in {model}. Expected a run directory or the folder of a SavedModel.{hint}"
        )
    name = name or (model if folder == model and model.name != runs.EXPORT else folder.parent).resolve().name
    servable = Servable(folder, limits)
    if grpc:
        _serve_grpc(servable, name, f"{host}:{port or _GRPC_PORT}")
    else:
        # What is wrong is found out here, where it ends in one line, not in a process of BentoML's.
        _check_free(host, port or _REST_PORT)
        _serve_rest(folder.resolve(), name, limits, host, port or _REST_PORT)


def _check_free(host: str, port: int) -> None:
    """Raises UsageError if nobody can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(f"Cannot listen on {host}:{port}: {error}") from None


def _serve_grpc(servable: Servable, name: str, address: str) -> None:
    from tfinv.serving.rpc import make_server

    try:
        server, port = make_server(servable, name, address)
    except RuntimeError as error:  # gRPC's word for a port that is taken
        raise UsageError(f"Cannot listen on {address}: {error}") from None
    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(server.stop(_GRACE_SECONDS)))
    server.start()
    print(f"Serving {name} by gRPC on {address.rpartition(':')[0]}:{port}", flush=True)
    server.wait_for_termination()


def _serve_rest(folder: Path, name: str, limits: Limits, host: str, port: int) -> None:
    from tfinv.serving import rest

    print(f"Serving {name} on http://{host}:{port}/v1/models/{name}:predict", flush=True)
    environment = {**os.environ, **rest.environment(folder, name, limits), "BENTOML_DO_NOT_TRACK": "True"}
    service = f"{rest.__name__}:Predictor"
    arguments = ["-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]
    # In place of this process, so that BentoML gets its signals.
    os.execve(sys.executable, [sys.executable, *arguments], environment)
