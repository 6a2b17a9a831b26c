"""The settings: environment variables with the prefix WORKER_, a .env file, and options."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from worker import setting_values
from worker.broker.in_flight import PREFETCH_SIZE
from worker.contract.allowed import Allowed, Names
from worker.contract.message import MAX_MESSAGE_SIZE
from worker.contract.plain import PlainMessages
from worker.contract.request import MAX_BODY_BYTES, MAX_PARAMETER_SIZE
from worker.contract.states import States
from worker.contract.topology import EVENTS_SUFFIX, MAX_EXCHANGE, STATES_SUFFIX, QueueNames, read_bindings
from worker.urls.broker import with_password_file_in_each
from worker.urls.password_file import with_password_file

PREFIX = "WORKER_"
LogLevel = Literal["debug", "info", "warning", "error"]
DatabaseKind = Literal["any", "prefect", "standalone"]
# Variables with our prefix that are no settings: those of the tests, and the addresses that
# Kubernetes sets in each container of a namespace with a service named "worker".
_OTHERS = re.compile(r"TEST_.*|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?")
# Settings in which workers of a queue may differ, or that only Prefect's API knows.
_OF_ONE_WORKER = frozenset(
    ("http_host", "http_port", "log_format", "log_level", "migrate", "prefect_api_url", "shutdown_timeout")
)
# Texts that the side port shows anyway, or that are one of a few words.
_SHOWN = frozenset(("queue", "deployment", "deployment_parameter", "database_kind", "states"))


class SettingsError(Exception):
    """A setting is wrong. The message has its name."""


class Settings(BaseSettings):
    """All settings. In the environment each has the prefix ``WORKER_``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    amqp_url: Annotated[str, AfterValidator(setting_values.amqp_url)] = Field(
        "amqp://guest:guest@localhost:5672/",
        repr=False,
        description="The broker's URL. amqps:// for TLS, with cafile, certfile and keyfile in the query. A "
        "cluster may have several URLs, separated by commas: the first that answers is used.",
    )
    management_url: Annotated[str | None, AfterValidator(setting_values.management_url)] = Field(
        None,
        repr=False,
        description="The broker's management API, such as http://rabbitmq:15672. It shows policies that "
        "drop, expire or limit messages of the worker's queues, and a missing binding: AMQP does not. "
        "Without a user and password of its own, those of WORKER_AMQP_URL are used. The user needs the tag "
        "'management'.",
    )
    database_url: Annotated[str, AfterValidator(setting_values.database_url)] = Field(
        "sqlite+aiosqlite:///flow_runs.db",
        repr=False,
        validate_default=False,  # SQLAlchemy would be loaded for it, by commands without a database
        description="sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name.",
    )
    amqp_password_file: Annotated[str | None, AfterValidator(setting_values.file)] = Field(
        None,
        description="A file with the password or token for all URLs of the broker. It overrides theirs. Read "
        "again at each connect.",
    )
    database_password_file: Annotated[str | None, AfterValidator(setting_values.file)] = Field(
        None,
        description="A file with PostgreSQL's password. It overrides the URL's. Read again at each connect.",
    )
    queue: Annotated[str, AfterValidator(setting_values.queue)] = Field(
        "flow-runs.create",
        description="The request queue. Exchange, routing key and dead-letter queue are named after it.",
    )
    bindings: Annotated[str, AfterValidator(setting_values.bindings)] = Field(
        "",
        description="EXCHANGE:ROUTING KEY, separated by commas: bind the request queue to these exchanges of "
        "others. The key may be empty. A missing exchange is waited for while requests are served. Nothing "
        "is ever unbound.",
    )
    # Two batches and a half: one commits, the next is decoded, and replies are being confirmed.
    prefetch: int = Field(1250, ge=1, le=65535, description="Most deliveries held at once.")
    # Fits into the promised memory: see tests/benchmarks/memory.py.
    prefetch_size: int = Field(
        PREFETCH_SIZE,
        ge=1,
        description="Most bytes of requests held at once. The worker stops reading until there is room.",
    )
    # Larger batches are no faster: see tests/benchmarks.
    batch_max: int = Field(500, ge=1, le=10_000, description="Most requests in one transaction.")
    reply_to_pattern: Annotated[str | None, AfterValidator(setting_values.pattern)] = Field(
        None,
        description="A regular expression for the whole name of a reply queue. none allows no queue. Direct "
        "reply-to is always allowed.",
    )
    flow_pattern: Annotated[str | None, AfterValidator(setting_values.pattern)] = Field(
        None,
        description="A regular expression for the whole name of a flow that producers may run. none allows "
        "no flow. A database of the worker's own has no names: there it is matched with the flow's id.",
    )
    deployment_pattern: Annotated[str | None, AfterValidator(setting_values.pattern)] = Field(
        None,
        description="The same for deployments, as FLOW/DEPLOYMENT, also if a request has the id. In a "
        "database of the worker's own it is matched with the deployment_id.",
    )
    variable_pattern: Annotated[str | None, AfterValidator(setting_values.pattern)] = Field(
        None,
        description="The same for workspace variables that a request's parameters and job variables may use. "
        "A deployment's own parameters may use any.",
    )
    job_variable_pattern: Annotated[str | None, AfterValidator(setting_values.pattern)] = Field(
        None, description="The same for job variables that a request may set."
    )
    deployment: Annotated[str | None, AfterValidator(setting_values.deployment)] = Field(
        None,
        description="FLOW NAME/DEPLOYMENT NAME: each message without the type of a request starts a run of "
        "this deployment, with its body, a JSON object, as parameters. It demands "
        "WORKER_DATABASE_KIND=prefect. If there is no such deployment, the worker waits for it.",
    )
    deployment_parameter: str | None = Field(
        None, description="The body of such a message, any JSON, is the value of this one parameter."
    )
    deployment_replies: bool = Field(
        False,
        description="Answer such messages, too, if they have a reply_to. Otherwise it belongs to another "
        "protocol, and is ignored.",
    )
    max_body_bytes: int = Field(
        MAX_BODY_BYTES, ge=1, description="Largest body, in bytes. Larger ones are refused with 413."
    )
    max_parameter_size: int = Field(
        MAX_PARAMETER_SIZE,
        ge=0,
        description="Largest parameters, in bytes, before and after variables are filled in. Larger ones are "
        "refused with 422. 0: only WORKER_MAX_BODY_BYTES limits them. Set it to the Prefect server's "
        "PREFECT_SERVER_API_MAX_PARAMETER_SIZE.",
    )
    max_message_size: int = Field(
        MAX_MESSAGE_SIZE,
        ge=1024,
        description="Largest message that the broker accepts (its max_message_size), in bytes. A larger "
        "reply has only the reason.",
    )
    database_kind: Annotated[DatabaseKind, BeforeValidator(setting_values.lower)] = Field(
        "any",
        description="prefect: a Prefect server's database. The worker waits for its tables. standalone: a "
        "database of the worker's own. any: a Prefect server's if its tables exist at the start, otherwise "
        "the worker's own.",
    )
    prefect_api_url: Annotated[str | None, AfterValidator(setting_values.api_url)] = Field(
        None,
        description="The API of the Prefect server that owns the database, such as http://prefect:4200/api. "
        "With it, each new run has the event that the server would emit. It demands "
        "WORKER_DATABASE_KIND=prefect.",
    )
    prefect_api_auth_string: str | None = Field(
        None, repr=False, description="The server's PREFECT_SERVER_API_AUTH_STRING, if it has one."
    )
    prefect_api_auth_string_file: Annotated[str | None, AfterValidator(setting_values.file)] = Field(
        None, description="A file with that string, which overrides it. Read again at each request."
    )
    prefect_api_cafile: str | None = Field(
        None,
        description="For https: a file with the certificates to verify the API's certificate (default: the "
        "system's).",
    )
    # A server on two cores takes this many without falling behind: see the page of measurements.
    prefect_events_per_second: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="Most events a second that all workers together send to the API.",
    )
    fleet_users: str = Field(
        "",
        description="The broker logins of this queue's other workers, and of people who replay refused "
        "events, separated by commas. Events of any other user except the worker's own become dead letters.",
    )
    states: Annotated[States, BeforeValidator(setting_values.lower)] = Field(
        "off",
        description="final: publish each COMPLETED, FAILED, CANCELLED or CRASHED state of any run in the "
        "database to the exchange QUEUE.states. all: publish every state. Set it to the same for all workers "
        "of a queue.",
    )
    # People notice no shorter delay. A look is one query that reads an index.
    states_interval: float = Field(
        0.2,
        gt=0,
        le=60,
        allow_inf_nan=False,
        description="Seconds between two looks for new states in the database.",
    )
    migrate: bool = Field(
        False, description="Migrate a PostgreSQL schema at the start. SQLite's is always migrated."
    )
    fast_path: bool = Field(
        True, description="Read deliveries and write replies in bulk. Turn it off only to find a fault."
    )
    http_host: str = Field(
        "127.0.0.1", description="The address that serves health, metrics and /asyncapi.json."
    )
    http_port: int = Field(
        8080,
        ge=0,
        le=65535,
        description="The port of health and metrics. 0: any free port. If it is set and taken, the worker "
        "does not start. If it is not set and 8080 is taken, a free port is used.",
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console for people, json for collectors."
    )
    log_level: Annotated[LogLevel, BeforeValidator(setting_values.lower)] = Field(
        "info", description="debug, info, warning or error."
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds to finish requests in flight after SIGTERM."
    )

    @property
    def shared(self) -> dict[str, str]:
        """The settings that all workers of a queue share, by name: numbers, switches and the names
        that the AsyncAPI document shows. Other texts become eight digits of their SHA-256. URLs,
        passwords and files are left out.
        """
        return {
            name: _told_apart(name, getattr(self, name))
            for name, field in type(self).model_fields.items()
            if field.repr and not name.endswith("file") and name not in _OF_ONE_WORKER
        }

    @property
    def fleet_logins(self) -> frozenset[str]:
        """The logins of WORKER_FLEET_USERS."""
        return frozenset(each.strip() for each in self.fleet_users.split(",") if each.strip())

    @property
    def allowed(self) -> Allowed:
        """The names that producers may use."""
        return Allowed(
            flows=Names(self.flow_pattern, "WORKER_FLOW_PATTERN"),
            deployments=Names(self.deployment_pattern, "WORKER_DEPLOYMENT_PATTERN"),
            variables=Names(self.variable_pattern, "WORKER_VARIABLE_PATTERN"),
            job_variables=Names(self.job_variable_pattern, "WORKER_JOB_VARIABLE_PATTERN"),
        )

    @property
    def plain_messages(self) -> PlainMessages | None:
        """How messages without the type of a request are read. None: as create requests."""
        if self.deployment is None:
            return None
        return PlainMessages(self.deployment, self.deployment_parameter, self.deployment_replies)

    @property
    def queue_names(self) -> QueueNames:
        """The queues, the exchange and the binding at the broker."""
        return QueueNames(
            self.queue,
            events=self.prefect_api_url is not None,
            states=self.states != "off",
            bindings=read_bindings(self.bindings),
        )

    @model_validator(mode="after")
    def _urls_name_their_password_files(self) -> Self:
        """Put the password files into the URLs: each connection reads its file from there."""
        if self.amqp_password_file:
            self.amqp_url = with_password_file_in_each(self.amqp_url, self.amqp_password_file)
        if self.database_password_file and not self.database_url.startswith("sqlite"):
            self.database_url = with_password_file(self.database_url, self.database_password_file)
        return self

    @model_validator(mode="after")
    def _events_are_of_a_prefect_server(self) -> Self:
        """Events need a Prefect server's database: one of our own has no server for them."""
        if self.prefect_api_url is not None:
            if self.database_kind == "standalone":
                raise ValueError(
                    "WORKER_PREFECT_API_URL: needs a Prefect server's database, "
                    "and WORKER_DATABASE_KIND demands one of the worker's own"
                )
            self.database_kind = "prefect"
            if len(f"{self.queue}{EVENTS_SUFFIX}".encode()) > 255:
                raise ValueError("WORKER_QUEUE: must have 1 to 248 bytes with WORKER_PREFECT_API_URL")
        return self

    @model_validator(mode="after")
    def _states_have_a_name(self) -> Self:
        """An exchange's name is shorter than a queue's."""
        longest = MAX_EXCHANGE - len(STATES_SUFFIX)
        if self.states != "off" and len(self.queue) > longest:
            raise ValueError(f"WORKER_QUEUE: must have 1 to {longest} bytes with WORKER_STATES")
        return self

    @model_validator(mode="after")
    def _deployment_is_of_a_prefect_server(self) -> Self:
        """Deployments exist in a Prefect server's database only."""
        if self.deployment is None:
            for name in ("deployment_parameter", "deployment_replies"):
                if getattr(self, name):
                    raise ValueError(f"{PREFIX}{name.upper()}: needs WORKER_DEPLOYMENT")
            return self
        if self.database_kind == "standalone":
            raise ValueError(
                "WORKER_DEPLOYMENT: needs a Prefect server's database, "
                "and WORKER_DATABASE_KIND demands one of the worker's own"
            )
        self.database_kind = "prefect"
        flow = self.deployment.partition("/")[0]
        if flow not in self.allowed.flows or self.deployment not in self.allowed.deployments:
            raise ValueError("WORKER_DEPLOYMENT: WORKER_FLOW_PATTERN or WORKER_DEPLOYMENT_PATTERN forbids it")
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _stripped(cls, value: Any) -> Any:
        """Strip the line break that often ends a secret's file."""
        return value.strip() if isinstance(value, str) else value


def _told_apart(name: str, value: Any) -> str:
    if not isinstance(value, str) or name in _SHOWN:
        return str(value)
    return sha256(value.encode()).hexdigest()[:8] if value else ""


def load_settings(**options: Any) -> Settings:
    """Settings from options (None: not given), the environment and ``.env``, in this order.

    Raises:
        SettingsError: has a line for each wrong setting.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        lines = (_told(each) for each in error.errors(include_url=False, include_input=False))
        raise SettingsError("\n".join(lines)) from None
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(f".env can't be read: {error}") from None


def _told(error: Any) -> str:
    """The error of a setting. An error of several settings names them in its message."""
    message = str(error["msg"]).removeprefix("Value error, ")
    name = ".".join(str(part) for part in error["loc"]).upper()
    return f"{PREFIX}{name}: {message}" if name else message


def unknown_settings() -> Iterator[tuple[str, str | None]]:
    """Variables of the environment and ``.env`` with our prefix that are no settings, each with the
    setting of the most similar name.
    """
    names = {field.upper() for field in Settings.model_fields}
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    given = (name.upper() for source in sources for name in source.env_vars)
    ours = {name.removeprefix(PREFIX) for name in given if name.startswith(PREFIX)}
    for name in sorted(ours - names):
        if not _OTHERS.fullmatch(name):
            nearest = get_close_matches(name, names, 1)
            yield f"{PREFIX}{name}", f"{PREFIX}{nearest[0]}" if nearest else None
