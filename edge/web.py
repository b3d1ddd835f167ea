"""Everything of the public port that is not a call: health and metadata, through Starlette."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.auth import allow
from edge.errors import NotFound, Refusal
from edge.infer import Service, Target
from edge.snapshot import Endpoint
from registry_sync.documents import KeyRecord, TensorSpec

# Only what exists: a client switches features on by this list.
EXTENSIONS = ["binary_tensor_data", "parameters", "schedule_policy", "generate"]
PLATFORMS = {"onnx": "onnxruntime_onnx", "torch-export": "pytorch_export"}

try:
    VERSION = version("tidepool")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0"


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `content` as JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


class Web:
    """The handlers, over the service that the fast path uses too."""

    def __init__(self, service: Service, is_draining: Callable[[], bool]) -> None:
        self._service = service
        self._is_draining = is_draining

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/{model}", self.model_metadata),
            Route("/v2/models/{model}/ready", self.model_ready),
            Route("/v2/models/{model}/versions/{version}", self.model_metadata),
            Route("/v2/models/{model}/versions/{version}/ready", self.model_ready),
        ]
        # The fast path answers these; what comes here has another method, or a name too long.
        calls = [
            Route(f"{model}/{call}", self.call, methods=["POST"])
            for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
            for call in ("infer", "generate", "generate_stream")
        ]
        handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _http_error, Exception: _bug}
        app = Starlette(routes=[*routes, *calls], exception_handlers=handlers)
        app.router.redirect_slashes = False  # it would send clients to whatever Host says
        return app

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return answer({"live": True})

    async def ready(self, request: Request) -> Response:
        """The edge has routes, and the expected workers have registered.

        It also knows whose keys are good: before that it would refuse everybody.
        """
        world = self._service.world
        is_told = world.has_routes and world.has_documents
        is_ready = is_told and world.is_pool_ready and not self._is_draining()
        return answer({"ready": is_ready}, 200 if is_ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """What this server is."""
        self._service.auth.check(self._service.world.snapshot, request.headers.get)
        return answer({"name": "tidepool", "version": VERSION, "extensions": EXTENSIONS})

    async def model_metadata(self, request: Request) -> Response:
        """The signature of an endpoint or a version."""
        _, endpoint = await self._find(request)
        arm = endpoint.arms[0]
        manifest = arm.version.manifest
        return answer(
            {
                "name": endpoint.name,
                "versions": [arm.version.ref[1] for arm in endpoint.arms],
                "platform": PLATFORMS.get(manifest.format, manifest.format),
                "inputs": [_tensor(spec) for spec in manifest.inputs],
                "outputs": [_tensor(spec) for spec in manifest.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a call would be answered in time; wakes nothing."""
        _, endpoint = await self._find(request)
        states = [self._state(arm.version.ref, endpoint) for arm in endpoint.arms]
        # Every arm that gets requests must be able to answer them.
        state = next((s for s in states if s not in ("warm", "asleep")), states[0])
        is_ready = state in ("warm", "asleep")
        return answer(
            {"name": endpoint.name, "ready": is_ready},
            200 if is_ready else 503,
            {"x-tidepool-state": state},
        )

    async def call(self, request: Request) -> Response:
        """A call that the fast path did not take: its model's name is none."""
        await self._find(request)
        raise NotFound("Not Found")

    def _state(self, ref: tuple[str, str], endpoint: Endpoint) -> str:
        route = self._service.pool.route(ref)
        if route is None:
            return "unknown"
        if route.state == "asleep" and not route.wake_at:
            return "no_worker"
        spec = endpoint.spec
        sleeps = spec is None or spec.scale.idle_s != "auto"
        if route.state == "asleep" and not sleeps:
            return "loading"  # it never sleeps by policy: its first load is about to begin
        return route.state

    async def _find(self, request: Request) -> tuple[KeyRecord, Endpoint]:
        service = self._service
        target = Target(request.path_params["model"], request.path_params.get("version"))
        snapshot = service.world.snapshot
        record = service.auth.check(snapshot, request.headers.get)
        allow(record, target.name)
        return record, await service.find(snapshot, target)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return answer({"error": error.text}, error.status, dict(error.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    return answer({"error": "internal error"}, 500)
