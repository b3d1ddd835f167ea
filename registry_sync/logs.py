"""One JSON object a line on stderr, for every process of Tidepool and the libraries in it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, Protocol

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


class Stream(Protocol):
    """What lines can be written to."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...


_LEVELS = ("debug", "info", "warning", "error", "critical")
# The whole mutable state: the levels that this process shows now.
_shown: set[str] = set(_LEVELS)


def show(levels: Iterable[str]) -> None:
    """Show these levels from now on, and no others."""
    wanted = set(levels)
    assert wanted <= set(_LEVELS)
    _shown.clear()
    _shown.update(wanted)


def shown() -> frozenset[str]:
    """Return the levels that this process shows now."""
    return frozenset(_shown)


def _drop_hidden(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    # Loggers are kept once made, and with them their class: only this can change later.
    if method not in _shown:
        raise structlog.DropEvent
    return event


def configure(tier: str, level: str, stream: Stream | None = None) -> None:
    """Set up structlog, and the standard library's logging behind it, for this process.

    Every line has `timestamp` (UTC, ISO 8601), `level`, `tier`, `pid` and
    `event`. Libraries that use `logging` are shown from "warning" up.

    Args:
        tier: which process this is ("edge", "controller", "worker", "sync", …).
        level: the lowest level shown, until `show` says otherwise: debug, info, warning, error
            or critical.
        stream: where lines go; stderr by default.

    Raises:
        ValueError: there is no such level.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: use one of {', '.join(_LEVELS)}")
    show(_LEVELS[_LEVELS.index(level) :])
    file: Any = sys.stderr if stream is None else stream
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
        processors=[_drop_hidden, *shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(file)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
