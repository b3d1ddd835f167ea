"""`tidepool`: finds the command, runs it, and says what went wrong.

Results go to stdout, progress and logs to stderr.  Exit status 2 is bad usage, 1 a failure with the
bad value and the way out.  A command's module is only imported when it is called, so that `up`
does not carry what `publish` needs.
"""

from __future__ import annotations

import importlib
import sys

import typer

from infra.printable import printable
from infra.stack import CannotStart

COMMANDS = {
    "demo": "infra.commands.demo",
    "up": "infra.commands.run",
    "edge": "infra.commands.run",
    "pool": "infra.commands.run",
    "controller": "infra.commands.run",
    "sync": "infra.commands.run",
    "publish": "infra.commands.publish",
    "models": "infra.commands.models",
    "endpoint": "infra.commands.endpoint",
    "rollout": "infra.commands.rollout",
    "keys": "infra.commands.keys",
    "engines": "infra.commands.engines",
    "audit": "infra.commands.audit",
    "status": "infra.commands.status",
    "warm": "infra.commands.status",
    "bench": "infra.commands.bench",
    "doctor": "infra.commands.doctor",
    "simulate": "infra.commands.simulate",
    "estimate": "infra.commands.estimate",
}


def make_app(name: str | None) -> typer.Typer:
    """Return the command line with the module of `name`, or with all of them."""
    app = typer.Typer(
        name="tidepool",
        help="Serve models over HTTP from a light edge in front of a warm pool.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    modules = [COMMANDS[name]] if name in COMMANDS else sorted(set(COMMANDS.values()))
    for module in modules:
        importlib.import_module(module).register(app)
    return app


def _root() -> None:
    """Serve models over HTTP from a light edge in front of a warm pool."""


def main() -> None:
    """Run the command in sys.argv."""
    name = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    app = make_app(name)
    try:
        app()
    except CannotStart as error:
        lines = [printable(line) for line in str(error).split("\n")]
        print("tidepool: " + "\n".join(lines), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
