"""One JSON object a line on stderr, for every process of Tidepool and the libraries in it."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS = ("debug", "info", "warning", "error", "critical")


def configure(tier: str, level: str) -> None:
    """Set up structlog, and the standard library's logging behind it, for this process.

    Every line has `timestamp` (UTC, ISO 8601), `level`, `tier`, `pid` and
    `event`. Libraries that use `logging` are shown from "warning" up.

    Args:
        tier: which process this is ("edge", "controller", "worker", "sync", …).
        level: the lowest level shown: debug, info, warning, error or critical.

    Raises:
        ValueError: there is no such level.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: use one of {', '.join(_LEVELS)}")
    threshold = logging.getLevelNamesMapping()[level.upper()]

    def origin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        # Asked every time, because a process may have forked since.
        return {**event, "tier": tier, "pid": os.getpid()}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        origin,
        structlog.processors.format_exc_info,
    ]
    # `default=str`: a value that JSON does not know must not cost the line.
    render = structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
