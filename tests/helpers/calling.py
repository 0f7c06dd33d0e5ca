"""The command line called from a test."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tokensieve.cli.app import app


def call(*arguments: object) -> Result:
    """What ``tokensieve ARGUMENTS`` does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """Standard error of a call that must end in one sentence and exit code 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())
