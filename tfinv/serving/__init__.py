"""A SavedModel behind TensorFlow Serving's two protocols: REST through BentoML, and gRPC.

    servable.py   the model: checks requests and gathers concurrent ones into batches; knows no protocol
    json_body.py  TensorFlow Serving's JSON, to arrays and back
    rest.py       the routes, and the BentoML service
    rpc.py        the Predict service of tensorflow-serving-api

Needs the extra "serve".
"""

from tfinv.serving.servable import Limits, RequestError, Servable

__all__ = ["Limits", "RequestError", "Servable"]
