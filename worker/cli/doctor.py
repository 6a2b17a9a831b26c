"""``doctor``: checks the broker, the database and Prefect's API, and gives advice."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.options import AmqpUrl, DatabaseUrl, Queue, escape, out, print_json, run_async

if TYPE_CHECKING:
    from worker.operate.doctor import Finding

# By verdict.
_MARKS = {
    "ok": "[green]ok[/]     ",
    "warning": "[yellow]warning[/]",
    "problem": "[bold red]problem[/]",
    "not checked": "[dim]not checked[/]",
}


def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON instead of lines for people.")
    ] = False,
    amqp_url: AmqpUrl = None,
    database_url: DatabaseUrl = None,
    queue: Queue = None,
) -> None:
    """Check settings, broker, queues, database and Prefect's API. Changes nothing. The exit code is
    1 if a worker could not serve or could not send events.
    """
    from pydantic_core import to_json

    from worker.operate.doctor import Verdict, examine
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, database_url=database_url, queue=queue)

    async def show_all() -> list["Finding"]:
        findings = []
        async for finding in examine(settings):
            findings.append(_shown(finding))
            if not json_output:
                _show(findings[-1])
        return findings

    findings = run_async(show_all())
    if json_output:
        print_json(to_json(findings, indent=2).decode())
    if any(each.verdict is Verdict.problem for each in findings):
        raise typer.Exit(1)


def _shown(finding: "Finding") -> "Finding":
    """A finding without secrets: it quotes errors of libraries."""
    from worker.observability.redaction import without_secrets

    return replace(finding, detail=without_secrets(finding.detail))


def _show(finding: "Finding") -> None:
    out.print(
        f"{_MARKS[finding.verdict.value]} [bold]{escape(finding.what)}[/]: {escape(finding.detail)}",
        highlight=False,
        soft_wrap=True,
    )
    if finding.advice:
        out.print(f"        → {escape(finding.advice)}", highlight=False, soft_wrap=True)
