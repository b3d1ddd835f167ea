"""The pools on AWS whose workers a controller starts and ends: where that is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from infra.child import ProcessSpec
from infra.stack import STAGE_WORKER, CannotStart, Node
from pool.aws.config import AwsAgentConfig, BadPools, PoolsConfig, decode

VARIABLE: Final = "TIDEPOOL_POOLS"

Pools = Annotated[
    Path | None,
    typer.Option(
        "--pools",
        help="The pools on AWS whose workers it starts and ends by demand: a JSON file; default: "
        f"what {VARIABLE} holds, if anything.",
    ),
]


def launcher_processes(node: Node, pools: Path | None, log_level: str) -> list[ProcessSpec]:
    """Return the launcher of the pools that the option or the environment describes, if any.

    Raises:
        CannotStart: they do not fit, or the file cannot be read.
    """
    found = described_pools(pools)
    if found is None:
        return []
    config = AwsAgentConfig(
        data=str(node.data), controller=node.control, pools=found, log_level=log_level
    )
    return [ProcessSpec("launcher", "infra.aws_agent", config, STAGE_WORKER)]


def described_pools(path: Path | None) -> PoolsConfig | None:
    """Return the pools that the option or the environment describes, if any.

    Raises:
        CannotStart: they do not fit, or the file cannot be read.
    """
    if path is None:
        text, source = os.environ.get(VARIABLE, ""), VARIABLE
    else:
        source = f"--pools {path}"
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CannotStart(f"{source}: {error}") from None
    if path is None and not text.strip():
        return None
    try:
        return decode(text)
    except BadPools as error:
        raise CannotStart(f"{source}: {error}") from None
