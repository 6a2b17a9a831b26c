"""The worker's settings: environment variables with the prefix WORKER_, a .env file, or a command's
options.
"""

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
# What the client library takes in names of queues and exchanges (pamqp's ``DOMAIN_REGEX``).
_QUEUE_NAME = re.compile(r"[a-zA-Z0-9-_.:@#,/+ ]*")
# Not settings, though they begin like ours: those of the tests, and the addresses that Kubernetes
# gives every container of a namespace with a service named "worker".
_OTHERS = re.compile(r"TEST_.*|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?")


class SettingsError(Exception):
    """A setting is wrong; the message names it as the user wrote it."""


def _visible(url: str) -> None:
    # The libraries pass over some of them in silence, and what is left is another host or file.
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
    """All settings, each by the same name in the environment, with ``WORKER_`` before it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    amqp_url: Annotated[str, AfterValidator(_amqp_url)] = Field(
        "amqp://guest:guest@localhost:5672/",
        repr=False,
        description="The broker; amqps:// for TLS, with cafile, certfile and keyfile in the query. "
        "Several URLs, separated by commas, for the nodes of a cluster: the first that answers is used.",
    )
    management_url: Annotated[str | None, AfterValidator(_management_url)] = Field(
        None,
        repr=False,
        description="The broker's management API, such as http://rabbitmq:15672, for what AMQP does not "
        "show: policies that drop, expire or limit what is in the worker's queues, and a missing binding. "
        "User and password are those in it, else those of WORKER_AMQP_URL; the user needs the tag "
        "'management'.",
    )
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "sqlite+aiosqlite:///flow_runs.db",
        repr=False,
        description="sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name.",
    )
    amqp_password_file: Annotated[str | None, AfterValidator(_file)] = Field(
        None,
        description="A file with the password, or the token, for all URLs of the broker; it goes before "
        "theirs. Read anew at each connect.",
    )
    database_password_file: Annotated[str | None, AfterValidator(_file)] = Field(
        None,
        description="The same for PostgreSQL.",
    )
    queue: Annotated[str, AfterValidator(_queue)] = Field(
        "flow-runs.create",
        description="The request queue; exchange, routing key and dead-letter queue follow from it.",
    )
    # Two batches and a half: one that commits, one decoded behind it, and what is being confirmed.
    prefetch: int = Field(1250, ge=1, le=65535, description="Deliveries held at once at the most.")
    # What the promised size leaves room for; see tests/benchmarks/memory.py.
    prefetch_size: int = Field(
        PREFETCH_SIZE,
        ge=1,
        description="Bytes of requests that a worker holds at most; it reads no more until there is room.",
    )
    # Where larger batches stopped to be faster; see tests/benchmarks.
    batch_max: int = Field(500, ge=1, le=10_000, description="Requests in one transaction at the most.")
    reply_to_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="A regular expression that a reply queue's name must match as a whole; direct "
        "reply-to always may be used. none allows no others.",
    )
    flow_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="A regular expression that the name of a flow must match as a whole for producers to "
        "have runs of it; none allows no flow. In a database of the worker's own, which has no names, it "
        "is the flow's id.",
    )
    deployment_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="The same for deployments, as FLOW/DEPLOYMENT, named or given by their id. In a "
        "database of the worker's own it is the deployment_id.",
    )
    variable_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None,
        description="The same for the workspace variables that a request's parameters and job variables "
        "are filled in from. A deployment's own parameters may name any.",
    )
    job_variable_pattern: Annotated[str | None, AfterValidator(_pattern)] = Field(
        None, description="The same for the names of job variables that a request may set."
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1, description="Bytes of a body at the most; a larger one is refused with 413."
    )
    max_parameter_size: int = Field(
        MAX_PARAMETER_SIZE,
        ge=0,
        description="Larger parameters are refused with 422, and those that the values of variables make "
        "larger; 0 for no limit but WORKER_MAX_BODY_BYTES. As PREFECT_SERVER_API_MAX_PARAMETER_SIZE of the "
        "Prefect server; bytes.",
    )
    max_message_size: int = Field(
        MAX_MESSAGE_SIZE,
        ge=1024,
        description="What the broker takes in a message (its max_message_size); a larger reply gives the "
        "reason alone; bytes.",
    )
    database_kind: Annotated[DatabaseKind, BeforeValidator(_lower)] = Field(
        "any",
        description="prefect: only a Prefect server's database will do, whose tables are waited for. "
        "standalone: only one of the worker's own. any: a Prefect server's if its tables are there at "
        "the start, else one of the worker's own.",
    )
    prefect_api_url: Annotated[str | None, AfterValidator(_api_url)] = Field(
        None,
        description="The API of the Prefect server on whose database the worker is, such as "
        "http://prefect:4200/api. With it each new run has the event that the server would emit; it "
        "demands WORKER_DATABASE_KIND=prefect.",
    )
    prefect_api_auth_string: str | None = Field(
        None, repr=False, description="The server's PREFECT_SERVER_API_AUTH_STRING, if it has one."
    )
    prefect_api_auth_string_file: Annotated[str | None, AfterValidator(_file)] = Field(
        None, description="A file with it, which goes before it. Read anew at each request."
    )
    prefect_api_cafile: str | None = Field(
        None,
        description="A file with the certificates by which that of the API is verified, for https; the "
        "system's otherwise.",
    )
    # What a server on two cores takes in without falling behind; see the page of measurements.
    prefect_events_per_second: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="How many events are handed to the API in a second at the most, by all workers together.",
    )
    fleet_users: str = Field(
        "",
        description="Logins at the broker of other workers of this queue, and of who sends refused events "
        "again, separated by commas. Events of other users than these and the worker's own become dead "
        "letters.",
    )
    migrate: bool = Field(
        False, description="Bring a PostgreSQL schema up to date at the start (SQLite's always is)."
    )
    fast_path: bool = Field(
        True, description="Read deliveries and write replies many at once; off only to find a fault."
    )
    http_host: str = Field("127.0.0.1", description="Where health and metrics are served.")
    http_port: int = Field(
        8080,
        ge=0,
        le=65535,
        description="Their port; 0 for any free one. If it is set and taken, the worker does not start. "
        "If it is not set and 8080 is taken, a free one is used.",
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console for people, json for collectors."
    )
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        "info", description="debug, info, warning or error."
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds to finish what is in flight after SIGTERM."
    )

    @property
    def fleet_logins(self) -> frozenset[str]:
        """The logins of WORKER_FLEET_USERS."""
        return frozenset(each.strip() for each in self.fleet_users.split(",") if each.strip())

    @property
    def allowed(self) -> Allowed:
        """What producers may name."""
        return Allowed(
            flows=Names(self.flow_pattern, "WORKER_FLOW_PATTERN"),
            deployments=Names(self.deployment_pattern, "WORKER_DEPLOYMENT_PATTERN"),
            variables=Names(self.variable_pattern, "WORKER_VARIABLE_PATTERN"),
            job_variables=Names(self.job_variable_pattern, "WORKER_JOB_VARIABLE_PATTERN"),
        )

    @property
    def queue_names(self) -> QueueNames:
        """What must stand at the broker."""
        return QueueNames(self.queue, events=self.prefect_api_url is not None)

    @model_validator(mode="after")
    def _urls_name_their_password_files(self) -> Self:
        """So whatever connects by a URL reads the file, and none needs to be told of it."""
        if self.amqp_password_file:
            self.amqp_url = with_password_file_in_each(self.amqp_url, self.amqp_password_file)
        if self.database_password_file and not self.database_url.startswith("sqlite"):
            self.database_url = with_password_file(self.database_url, self.database_password_file)
        return self

    @model_validator(mode="after")
    def _events_are_of_a_prefect_server(self) -> Self:
        """A database of our own has no server that could have an event of its runs."""
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
        """Without the line break at the end that many a file of a secret has."""
        return value.strip() if isinstance(value, str) else value


def load_settings(**options: Any) -> Settings:
    """Settings from options (None: not given), the environment and ``.env``, in this order.

    Raises:
        SettingsError: with a line for each setting that is wrong.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        lines = (_told(each) for each in error.errors(include_url=False, include_input=False))
        raise SettingsError("\n".join(lines)) from None
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(f".env can't be read: {error}") from None


def _told(error: Any) -> str:
    """What is wrong with a setting, or with several together, which are named in the message."""
    message = str(error["msg"]).removeprefix("Value error, ")
    name = ".".join(str(part) for part in error["loc"]).upper()
    return f"{PREFIX}{name}: {message}" if name else message


def unknown_settings() -> Iterator[tuple[str, str | None]]:
    """Variables of the environment and of ``.env`` that are named like a setting and are none, each
    with the setting that is named most like it.
    """
    names = {field.upper() for field in Settings.model_fields}
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    given = (name.upper() for source in sources for name in source.env_vars)
    ours = {name.removeprefix(PREFIX) for name in given if name.startswith(PREFIX)}
    for name in sorted(ours - names):
        if not _OTHERS.fullmatch(name):
            nearest = get_close_matches(name, names, 1)
            yield f"{PREFIX}{name}", f"{PREFIX}{nearest[0]}" if nearest else None
