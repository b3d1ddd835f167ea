"""Peer: what most people write: FastAPI, a pydantic model of the body, a `def` in the thread pool.

`python -m infra.bench.peer_pydantic PORT MODEL [THREADS spinning|blocking]` serves one ONNX model
at POST /infer with JSON bodies as the Open Inference Protocol has them, both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

from infra.bench.peer_fastapi import serve


class Input(BaseModel):
    """One tensor; `data` flat and row-major."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Body(BaseModel):
    """A request."""

    inputs: list[Input]


def make_app(session: onnxruntime.InferenceSession) -> FastAPI:
    """Build the app around a loaded model of float32."""
    app = FastAPI()

    def infer(body: Body) -> dict[str, Any]:
        feeds = {
            given.name: np.array(given.data, np.float32).reshape(given.shape)
            for given in body.inputs
        }
        output = session.run(None, feeds)[0]
        return {
            "outputs": [
                {
                    "name": "y",
                    "datatype": "FP32",
                    "shape": list(output.shape),
                    "data": output.ravel().tolist(),
                }
            ]
        }

    app.add_api_route("/infer", infer, methods=["POST"])
    return app


if __name__ == "__main__":
    serve(make_app)
