"""Peer: what a user writes in an afternoon, at its cheapest.

`python -m infra.bench.peer_fastapi PORT MODEL [THREADS spinning|blocking]` serves one ONNX
model at POST /infer: the body is the input's raw bytes, the answer the first output's,
the model runs inline in an `async def`, without pydantic, keys, checks or metrics.
Without the last two it keeps onnxruntime's defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

from infra.bench.processes import die_with_parent
from infra.bench.sessions import session_options

DTYPES = {"tensor(float)": np.dtype("<f4"), "tensor(int32)": np.dtype("<i4")}


def make_app(session: onnxruntime.InferenceSession) -> FastAPI:
    """Build the app around a loaded model whose first axis is the batch."""
    only = session.get_inputs()[0]
    name, dtype, shape = only.name, DTYPES[only.type], (-1, *only.shape[1:])
    app = FastAPI()

    # An annotation that is a string of this scope cannot be read by FastAPI.
    async def infer(request: Request) -> Response:
        tensor = np.frombuffer(await request.body(), dtype=dtype).reshape(shape)
        output = session.run(None, {name: tensor})[0]
        return Response(output.tobytes(), media_type="application/octet-stream")

    app.add_api_route("/infer", infer, methods=["POST"], response_model=None)
    return app


def serve(make: Callable[[onnxruntime.InferenceSession], FastAPI]) -> None:
    """Serve what `make` builds around the model, by the arguments of this process."""
    die_with_parent()
    port, model, *options = sys.argv[1:]
    threads, waiting = options or ("0", "spinning")
    session = onnxruntime.InferenceSession(
        model,
        session_options(threads=int(threads), spinning=waiting == "spinning"),
        providers=["CPUExecutionProvider"],
    )
    uvicorn.run(
        make(session),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    serve(make_app)
