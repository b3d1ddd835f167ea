"""Commands called in this process, without the start of an interpreter for each."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from infra.cli import make_app
from infra.stack import CannotStart


class Commands:
    """Commands that all get the same options.

    Args:
        options: such as ``--data`` and a folder.
    """

    def __init__(self, *options: str) -> None:
        self._options = options

    def __call__(self, *words: str, stdin: str = "") -> Result:
        """Run a command."""
        return CliRunner().invoke(make_app(words[0]), [*words, *self._options], input=stdin)

    def ok(self, *words: str, stdin: str = "") -> str:
        """Run a command that must succeed; returns its stdout."""
        result = self(*words, stdin=stdin)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout.strip()

    def fails(self, *words: str, stdin: str = "") -> str:
        """Run a command that must fail with 1; returns what it says."""
        result = self(*words, stdin=stdin)
        assert isinstance(result.exception, CannotStart), (result.output, result.exception)
        return str(result.exception)

    def misused(self, *words: str) -> str:
        """Run a command that must end with 2; returns its stderr, without the frame around it."""
        result = self(*words)
        assert result.exit_code == 2, (result.output, result.exception)
        return " ".join(result.stderr.replace("│", " ").split())
