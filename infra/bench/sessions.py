"""ONNX Runtime's options as the peers use them; loaded by peer processes only."""

from __future__ import annotations

import onnxruntime


def session_options(*, threads: int, spinning: bool) -> onnxruntime.SessionOptions:
    """Return onnxruntime's defaults, but for two choices.

    Args:
        threads: for one operator; 0 leaves it to onnxruntime (one per core).
        spinning: whether idle threads burn CPU while they wait for the next operator;
            onnxruntime's default is True.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options
