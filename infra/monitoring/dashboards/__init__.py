"""Grafana's dashboards, out of code: `python -m infra.monitoring.dashboards` writes the files.

They lie beside it as JSON, to be imported as they are; a test holds that they are what it makes.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.monitoring.dashboards.cost import cost
from infra.monitoring.dashboards.endpoint import endpoint
from infra.monitoring.dashboards.overview import overview
from infra.monitoring.dashboards.pool import pool
from infra.monitoring.dashboards.rollout import rollout

FOLDER = Path(__file__).parent


def texts() -> dict[str, str]:
    """Return each dashboard's JSON by the name of its file."""
    made = {
        "overview": overview(),
        "endpoint": endpoint(),
        "pool": pool(),
        "rollout": rollout(),
        "cost": cost(),
    }
    encoder = JSONEncoder(indent=1, sort_keys=True)
    return {f"{name}.json": encoder.encode(shown.build()) + "\n" for name, shown in made.items()}
