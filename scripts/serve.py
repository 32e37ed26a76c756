"""Serves a trained model by TensorFlow Serving's REST interface, or by its gRPC.

    python scripts/serve.py saved_models/capsnet_quick-mnist-rotate-34-s0
    python scripts/serve.py saved_models/capsnet_quick-mnist-rotate-34-s0 --grpc

REST: POST /v1/models/NAME:predict with {"signature_name": "classify", "instances": [...]}; /healthz tells
whether the server is up. On port 8501 (gRPC: 8500), for this machine alone unless --host says otherwise; it
asks nobody for a password. CTRL-C stops it when running requests are answered. Needs 'tfinv[serve]'.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.quiet_tensorflow()
    from tfinv.serving.command import serve

    cli.guarded(lambda: cli.parse(serve, __doc__))
