"""Peer: Triton's Python backend, as pytriton brings it.

`PYTHON -m infra.bench.peer_pytriton PORT MODEL` serves one ONNX model as `bench` over the Open
Inference Protocol.  PYTHON is an interpreter that has nvidia-pytriton 0.7.0 and onnxruntime: its
pin on numpy 1 keeps it out of ours.  Triton's native ONNX backend is not part of that package.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch  # type: ignore[import-not-found, unused-ignore]
from pytriton.model_config import (  # type: ignore[import-not-found, unused-ignore]
    DynamicBatcher,
    ModelConfig,
    Tensor,
)
from pytriton.triton import (  # type: ignore[import-not-found, unused-ignore]
    Triton,
    TritonConfig,
)

from infra.bench.processes import die_with_parent, free_port
from infra.bench.sessions import session_options

ROWS_MAX = 32


def main() -> None:
    die_with_parent()
    port, model = sys.argv[1:]
    session = onnxruntime.InferenceSession(
        model, session_options(threads=0, spinning=False), providers=["CPUExecutionProvider"]
    )
    (given,), (answered,) = session.get_inputs(), session.get_outputs()

    def infer(**inputs: Any) -> list[Any]:
        return [session.run(None, {given.name: inputs[given.name]})[0]]

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(port),
        grpc_address="127.0.0.1",
        grpc_port=free_port(),
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="bench",
            infer_func=batch(infer),
            inputs=[Tensor(name=given.name, dtype=np.float32, shape=tuple(given.shape[1:]))],
            outputs=[Tensor(name=answered.name, dtype=np.float32, shape=tuple(answered.shape[1:]))],
            config=ModelConfig(
                max_batch_size=ROWS_MAX, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
