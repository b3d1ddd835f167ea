"""`/v2/logging` and `/v2/trace/setting`: what of Triton's settings means something here.

Log levels can be switched at run time.  There is no tracer: its settings can be read, all of them
off, and anything else is refused rather than taken and not done.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.errors import BadRequest, quote
from edge.infer import Service
from edge.log_settings import SharedLogSettings
from edge.web_answers import (
    admin_of_request,
    answer,
    find_endpoint,
    key_of_request,
    read_object,
)

# The extension's names; its values are texts.
TRACE: Final[dict[str, Any]] = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
}
_BOTH = ["GET", "POST"]


class Settings:
    """The handlers."""

    def __init__(self, service: Service, log_settings: SharedLogSettings) -> None:
        self._service = service
        self._log_settings = log_settings

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v2/logging", self.logging, methods=_BOTH),
            Route("/v2/trace/setting", self.trace, methods=_BOTH),
            Route("/v2/models/{model}/trace/setting", self.trace, methods=_BOTH),
        ]

    async def logging(self, request: Request) -> Response:
        """Show the log settings, or change those that are given."""
        if request.method == "POST":
            admin_of_request(self._service, request)
            given = await read_object(request)
            self._log_settings.set(self._log_settings.settings.changed(given))
        else:
            key_of_request(self._service, request)
        return answer(self._log_settings.settings.shown())

    async def trace(self, request: Request) -> Response:
        """Show the trace settings; they can be set to what they are."""
        if request.method == "POST":
            admin_of_request(self._service, request)
            check_trace(await read_object(request))
        else:
            key_of_request(self._service, request)
        if "model" in request.path_params:
            await find_endpoint(self._service, request)
        return answer(TRACE)


def check_trace(given: dict[str, Any]) -> None:
    """Refuse every change; None asks for the default, which is what there is.

    Raises:
        BadRequest: no such setting, or a value that would need a tracer.
    """
    for name, value in given.items():
        if name not in TRACE:
            raise BadRequest(f"there is no trace setting {quote(name)}")
        if value not in (None, TRACE[name], "OFF" if name == "trace_level" else None):
            raise BadRequest(
                f"{name}: this server has no tracer; the phases of a request are in its answer's "
                "Server-Timing and in the metrics"
            )
