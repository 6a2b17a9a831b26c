"""``run``: the worker in the foreground.

Its options are the settings. They are read only for this command: reading them takes most of a
command's start.
"""

import sys
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from worker.cli.options import run_async

# The settings in groups, as the help shows them.
GROUPS = {
    "Broker": ("amqp_url", "amqp_password_file", "management_url", "queue", "fast_path"),
    "Database": ("database_url", "database_password_file", "database_kind", "migrate"),
    "Limits": (
        *("prefetch", "prefetch_size", "batch_max"),
        *("max_body_bytes", "max_parameter_size", "max_message_size", "shutdown_timeout"),
    ),
    "Rights of producers": (
        *("reply_to_pattern", "flow_pattern", "deployment_pattern"),
        *("variable_pattern", "job_variable_pattern"),
    ),
    "Plain messages": ("bindings", "deployment", "deployment_parameter", "deployment_replies"),
    "Prefect's events": (
        *("prefect_api_url", "prefect_api_auth_string", "prefect_api_auth_string_file"),
        *("prefect_api_cafile", "prefect_events_per_second", "fleet_users"),
    ),
    "States": ("states", "states_interval"),
    "Side port and logs": ("http_host", "http_port", "log_format", "log_level"),
}
OTHERS = "Other options"

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def run(context: typer.Context) -> None:
    """Serve requests until SIGTERM or Ctrl-C, then finish those in flight."""
    command = typer.main.get_command(settings_app())
    command.main(context.args, prog_name=context.command_path, standalone_mode=False)


def settings_app() -> typer.Typer:
    """The command with an option for each setting."""
    from worker.settings import Settings

    def start(**options: Any) -> None:
        _start(options)

    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
        for name, field in Settings.model_fields.items()
    ]
    start.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    start.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=run.__doc__, cls=_InGroups)(start)
    return app


class _InGroups(TyperCommand):
    """Shows the options in groups, as plain text: rich's panels would cut long defaults off."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        group_of = {name: group for group, names in GROUPS.items() for name in names}
        found: dict[str, list[tuple[str, str]]] = {group: [] for group in (*GROUPS, OTHERS)}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                found[group_of.get(parameter.name or "", OTHERS)].append(record)
        for group, records in found.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def _option(name: str, field: "FieldInfo") -> Any:
    """A setting as an option. Settings check its value and report errors."""
    option, kind, default = name.replace("_", "-"), field.annotation, field.default
    help_text = f"{field.description} [WORKER_{name.upper()}]"
    if default is not None:
        shown = f"{default:g}" if isinstance(default, float) else default
        help_text += f" [default: {str(shown).lower() if kind is bool else shown}]"
    if kind is bool:
        flag = f"--{option}/--no-{option}"
        return Annotated[bool | None, typer.Option(flag, help=help_text)]
    metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else "TEXT"
    if kind in (int, float):
        metavar = "NUMBER"
    return Annotated[str | None, typer.Option(f"--{option}", help=help_text, metavar=metavar)]


def _start(options: dict[str, Any]) -> None:
    import structlog

    from worker.broker.connection import BrokerRefused
    from worker.broker.topology import TopologyMismatch
    from worker.observability.http import PortTaken
    from worker.observability.logs import configure_logging
    from worker.service import serve
    from worker.settings import load_settings, unknown_settings
    from worker.store import StoreError
    from worker.store.errors import WrongDatabase

    settings = load_settings(**options)
    configure_logging(settings.log_format, settings.log_level)
    for name, nearest in unknown_settings():
        structlog.get_logger(__name__).warning("unknown_setting", setting=name, nearest=nearest)
    try:
        run_async(serve(settings))
    except (StoreError, BrokerRefused, TopologyMismatch, PortTaken) as error:
        structlog.get_logger(__name__).error("cannot_start", error=str(error))
        sys.exit(2 if isinstance(error, WrongDatabase) else 1)
