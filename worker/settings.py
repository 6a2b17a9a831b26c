"""The settings: environment variables with the prefix WORKER_, a .env file, and options."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict
from yarl import URL

from worker.broker.in_flight import PREFETCH_SIZE
from worker.contract.allowed import Allowed, Names
from worker.contract.message import MAX_MESSAGE_SIZE
from worker.contract.request import MAX_PARAMETER_SIZE
from worker.contract.topology import EVENTS_SUFFIX, QueueNames
from worker.urls.broker import ENCODE, check_urls, split_urls, with_password_file_in_each
from worker.urls.database import read_database_url
from worker.urls.password_file import with_password_file

PREFIX = "WORKER_"
LogLevel = Literal["debug", "info", "warning", "error"]
DatabaseKind = Literal["any", "prefect", "standalone"]
# Names of queues and exchanges that the client library accepts (pamqp's ``DOMAIN_REGEX``).
_QUEUE_NAME = re.compile(r"[a-zA-Z0-9-_.:@#,/+ ]*")
# Variables with our prefix that are no settings: those of the tests, and the addresses that
# Kubernetes sets in each container of a namespace with a service named "worker".
_OTHERS = re.compile(r"TEST_.*|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?")


class SettingsError(Exception):
    """A setting is wrong. The message has its name."""


def _visible(url: str) -> None:
    # The libraries silently drop some of these characters, and then use another host or file.
    if not url.isprintable():
        raise ValueError("has a character that can't be seen, such as a line break")


def _amqp_url(urls: str) -> str:
    for url in split_urls(urls):
        _visible(url)
    return check_urls(urls)


def _database_url(url: str) -> str:
    _visible(url)
    parsed = read_database_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError("must be sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("must name a file: a database in memory ends with each connection")
    return url


def _queue(name: str) -> str:
    if not name or len(f"{name}.dead".encode()) > 255:
        raise ValueError("must have 1 to 250 bytes")
    if name.startswith("amq."):
        raise ValueError("must not begin with 'amq.', which the broker keeps for itself")
    if not _QUEUE_NAME.fullmatch(name):
        raise ValueError("may have letters of ASCII, digits, blanks and - _ . : @ # , / + alone")
    return name


def _api_url(url: str | None) -> str | None:
    if url is None:
        return None
    _visible(url)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be http://HOST:PORT/api or https://HOST/api")
    if parts.username or parts.password:
        raise ValueError("must have no password: set WORKER_PREFECT_API_AUTH_STRING to user:password")
    return url.rstrip("/")


def _management_url(url: str | None) -> str | None:
    if url is None:
        return None
    _visible(url)
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host) and parsed.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in url.rpartition("@")[2] or parsed.query:
        raise ValueError(f"must be http://HOST:15672 or https://user:password@HOST {ENCODE}")
    return url


def _pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


def _file(path: str | None) -> str | None:
    if path is not None:
        _visible(path)
    return path


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class Settings(BaseSettings):
    """All settings. In the environment each has the prefix ``WORKER_``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    amqp_url: Annotated[str, AfterValidator(_amqp_url)] = Field(
        "amqp://guest:guest@localhost:5672/",
        repr=False,
        description="The broker's URL. amqps:// for TLS, with cafile, certfile and keyfile in the query. A "
        "cluster may have several URLs, separated by commas: the first that answers is used.",
    )
    management_url: Annotated[str | None, AfterValidator(_management_url)] = Field(
        None,
        repr=False,
        description="The broker's management API, such as http://rabbitmq:15672. It shows policies that "
        "drop, expire or limit messages of the worker's queues, and a missing binding: AMQP does not. "
        "Without a user and password of its own, those of WORKER_AMQP_URL are used. The user needs the tag "
        "'management'.",
    )
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "sqlite+aiosqlite:///flow_runs.db",
        repr=False,
        validate_default=False,  # SQLAlchemy would be loaded for it, by commands without a database
        description="sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name.",
    )
    amqp_password_file: Annotated[str | None, AfterValidator(_file)] = Field(
        None,
        description="A file with the password or token for all URLs of the broker. It overrides theirs. Read "
        "again at each connect.",
    )
    database_password_file: Annotated[str | None, AfterValidator(_file)] = Field(
        None,
        description="A file with PostgreSQL's password. It overrides the URL's. Read again at each connect.",
    )
    queue: Annotated[str, AfterValidator(_queue)] = Field(
        "flow-runs.create",
        description="The request queue. Exchange, routing key and dead-letter queue are named after it.",
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
    reply_to_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="A regular expression for the whole name of a reply queue. none allows no queue. Direct "
        "reply-to is always allowed.",
    )
    flow_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="A regular expression for the whole name of a flow that producers may run. none allows "
        "no flow. A database of the worker's own has no names: there it is matched with the flow's id.",
    )
    deployment_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="The same for deployments, as FLOW/DEPLOYMENT, also if a request has the id. In a "
        "database of the worker's own it is matched with the deployment_id.",
    )
    variable_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="The same for workspace variables that a request's parameters and job variables may use. "
        "A deployment's own parameters may use any.",
    )
    job_variable_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None, description="The same for job variables that a request may set."
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1, description="Largest body, in bytes. Larger ones are refused with 413."
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
    database_kind: Annotated[DatabaseKind, BeforeValidator(_lower)] = Field(
        "any",
        description="prefect: a Prefect server's database. The worker waits for its tables. standalone: a "
        "database of the worker's own. any: a Prefect server's if its tables exist at the start, otherwise "
        "the worker's own.",
    )
    prefect_api_url: Annotated[str | None, AfterValidator(_api_url)] = Field(
        None,
        description="The API of the Prefect server that owns the database, such as http://prefect:4200/api. "
        "With it, each new run has the event that the server would emit. It demands "
        "WORKER_DATABASE_KIND=prefect.",
    )
    prefect_api_auth_string: str | None = Field(
        None, repr=False, description="The server's PREFECT_SERVER_API_AUTH_STRING, if it has one."
    )
    prefect_api_auth_string_file: Annotated[str | None, AfterValidator(_file)] = Field(
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
    migrate: bool = Field(
        False, description="Migrate a PostgreSQL schema at the start. SQLite's is always migrated."
    )
    fast_path: bool = Field(
        True, description="Read deliveries and write replies in bulk. Turn it off only to find a fault."
    )
    http_host: str = Field("127.0.0.1", description="The address that serves health and metrics.")
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
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        "info", description="debug, info, warning or error."
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds to finish requests in flight after SIGTERM."
    )

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
    def queue_names(self) -> QueueNames:
        """The queues, the exchange and the binding at the broker."""
        return QueueNames(self.queue, events=self.prefect_api_url is not None)

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

    @field_validator("*", mode="before")
    @classmethod
    def _stripped(cls, value: Any) -> Any:
        """Strip the line break that often ends a secret's file."""
        return value.strip() if isinstance(value, str) else value


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
