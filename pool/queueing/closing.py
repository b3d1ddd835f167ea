"""How a session ends whose queue takes nothing more."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from pool.engines.base import Session, reason_of
from pool.queueing.runner import Runner
from registry_sync.memory import give_back

_log = structlog.get_logger(__name__)


def close_session(
    session: Session, runner: Runner, name: str, on_closed: Callable[[], None]
) -> None:
    """Close `session` where its runs were done, and the runner after it; then call `on_closed`."""

    def work() -> str:
        try:
            session.close()
        except Exception as error:
            # Nothing depends on it any more, and there is nobody to raise it to.
            return reason_of(error)
        give_back()
        return ""

    def done(problem: str, _: float) -> None:
        if problem:
            _log.warning("engine_close_failed", engine=name, reason=problem)
        on_closed()

    runner.start(work, done)
    runner.close()
