"""Everything of the public port that is not a call: health and metadata, through Starlette."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.auth import may_call
from edge.errors import NotFound, Refusal
from edge.infer import Service
from edge.log_settings import SharedLogSettings
from edge.model_config import PLATFORMS, model_config
from edge.readiness import is_ready, state_of
from edge.repository import Repository
from edge.settings import Settings
from edge.snapshot import Endpoint
from edge.statistics import Name, by_version, model_stats
from edge.web_answers import answer, find_endpoint, key_of_request
from registry_sync.documents import TensorSpec

# Only what exists: a client switches features on by this list.
EXTENSIONS = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
    "generate",
]

try:
    VERSION = version("tidepool")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0"

_MODELS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


class Web:
    """The handlers, over the service that the fast path uses too."""

    def __init__(
        self,
        service: Service,
        is_draining: Callable[[], bool],
        log_settings: SharedLogSettings,
    ) -> None:
        self._service = service
        self._log_settings = log_settings
        self._is_draining = is_draining

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/v2", self.server_metadata),
            Route("/v2/", self.server_metadata),  # as the protocol's OpenAPI document has it
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_stats),
            *Repository(self._service).routes(),
            *Settings(self._service, self._log_settings).routes(),
        ]
        for model in _MODELS:
            routes += [
                Route(model, self.model_metadata),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/config", self.model_config),
                Route(f"{model}/stats", self.model_stats),
            ]
        # The fast path answers these; what comes here has another method, or a name too long.
        calls = [
            Route(f"{model}/{call}", self.call, methods=["POST"])
            for model in _MODELS
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

        It also knows whose keys are good: before that it would refuse everybody.  Nor is it ready
        while every worker that it was told of hangs, or cannot be reached.
        """
        world = self._service.world
        is_told = world.has_routes and world.has_documents
        is_served = world.is_pool_ready and self._service.pool.reach.has_anybody()
        is_ready = is_told and is_served and not self._is_draining()
        return answer({"ready": is_ready}, 200 if is_ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """What this server is."""
        key_of_request(self._service, request)
        return answer({"name": "tidepool", "version": VERSION, "extensions": EXTENSIONS})

    async def model_metadata(self, request: Request) -> Response:
        """The signature of an endpoint or a version."""
        endpoint = await find_endpoint(self._service, request)
        arm = endpoint.arms[0]
        manifest = arm.version.manifest
        return answer(
            {
                "name": endpoint.name,
                "versions": [arm.version.ref[1] for arm in endpoint.arms],
                "platform": PLATFORMS.get(manifest.format, (manifest.format, ""))[0],
                "inputs": [_tensor(spec) for spec in manifest.inputs],
                "outputs": [_tensor(spec) for spec in manifest.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a call would be answered in time; wakes nothing."""
        endpoint = await find_endpoint(self._service, request)
        pool = self._service.pool
        routes = [pool.route_in_reach(arm.version.ref) for arm in endpoint.running]
        # Every arm that gets requests must be able to answer them.
        late = [route for route in routes if not is_ready(route, endpoint.deadline_s)]
        return answer(
            {"name": endpoint.name, "ready": not late},
            503 if late else 200,
            {"x-tidepool-state": state_of((late or routes)[0])},
        )

    async def model_config(self, request: Request) -> Response:
        """The same as Triton's ModelConfig."""
        endpoint = await find_endpoint(self._service, request)
        pool = self._service.pool
        return answer(model_config(endpoint, [pool.route(a.version.ref) for a in endpoint.arms]))

    async def model_stats(self, request: Request) -> Response:
        """What was counted of an endpoint or a version."""
        endpoint = await find_endpoint(self._service, request)
        totals = by_version(self._service.metrics.node().arms)
        return answer(model_stats(_names(endpoint), totals))

    async def all_stats(self, request: Request) -> Response:
        """What was counted of everything that the key may call, and that was or can be called."""
        service = self._service
        record = key_of_request(service, request)
        totals = by_version(service.metrics.node().arms)
        names = set(totals)
        for endpoint in service.world.snapshot.endpoints.values():
            names.update(_names(endpoint))
        return answer(model_stats(sorted(n for n in names if may_call(record, n[0])), totals))

    async def call(self, request: Request) -> Response:
        """A call that the fast path did not take: its model's name is none."""
        await find_endpoint(self._service, request)
        raise NotFound("Not Found")


def _names(endpoint: Endpoint) -> list[Name]:
    versions = dict.fromkeys(arm.version.ref[1] for arm in endpoint.arms)
    return [(endpoint.name, version) for version in versions]


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
