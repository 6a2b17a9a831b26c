"""Finds new runs that Prefect's server could not read, list, hand out, move on or delete if they
were in its database. Pure: asks no database.

Each rule was found by trying a real server. ``tests/conformance/test_odd_runs.py`` tries it again.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..contract.decode import depth_exceeds
from ..contract.errors import UnusableInPrefect
from ..contract.flow_run import FlowRun
from ..contract.related import MAX_EVENT_NAME, MAX_RELATED
from ..contract.state import DateTime
from .creation import NewRun

# Prefect writes its answers with orjson, which allows 254 levels. ``/flow_runs/paginate`` nests a
# run deepest: an object in a list in an object.
MAX_LEVELS = 254 - 3
# A run's state is an object in the run.
MAX_STATE_LEVELS = MAX_LEVELS - 1
# A row of PostgreSQL's indexes may have 2,704 bytes, and Prefect indexes an event's tags. An event
# that does not fit is lost, with all that are stored together with it. The limit also holds on
# SQLite and for compressible text, as for idempotency keys.
MAX_INDEXED_BYTES = 2_500
# Text of up to this many characters fits, since a character has at most four bytes.
_SHORT = MAX_INDEXED_BYTES // 4
# asyncpg stores this as ``-infinity``.
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
# Besides tags, an event names flow, deployment, work queue, work pool, task run and creator.
_MAX_ROWS = 6


def unusable(new: NewRun, tags: Sequence[Collection[str] | None]) -> UnusableInPrefect | None:
    """The reason why Prefect's server could not handle a run; None if it could.

    Args:
        tags: those of the existing rows among the run's flow, its deployment (unless the run has
            these tags already) and its parent task run.
    """
    return (
        (_too_deep(new.run) if new.deep else None)
        or _no_result(new.run)
        or _too_early(new.run)
        or _too_long(new.run)
        or _too_many_tags(new, tags)
    )


def _too_deep(run: FlowRun) -> UnusableInPrefect | None:
    data = None if run.state is None else run.state.data
    for place, value, levels in (
        ("parameters", run.parameters, MAX_LEVELS),
        ("context", run.context, MAX_LEVELS),
        ("job_variables", run.job_variables, MAX_LEVELS),
        ("state.data", data, MAX_STATE_LEVELS),
    ):
        # The values in the last level count as one more.
        if depth_exceeds(value, levels + 1):
            why = f"JSON nested deeper than {levels} levels here is in no list that Prefect could show"
            return UnusableInPrefect(why, *place.split("."))
    return None


def _too_early(run: FlowRun) -> UnusableInPrefect | None:
    if run.expected_start_time != _FIRST_INSTANT:
        return None
    why = "The first instant of the year 1 is infinity on PostgreSQL, and Prefect can't say how late runs are"
    return UnusableInPrefect(why, "state", "state_details", "scheduled_time")


def _too_long(run: FlowRun) -> UnusableInPrefect | None:
    for tag in run.tags:
        if len(tag) > _SHORT and len(tag.encode()) > MAX_INDEXED_BYTES:
            why = f"A tag of more than {MAX_INDEXED_BYTES:,} bytes costs Prefect this and other events"
            return UnusableInPrefect(why, "tags")
    name = run.state_name or ""
    if len(name) > _SHORT and len(name[:MAX_EVENT_NAME].encode()) > MAX_INDEXED_BYTES:
        why = f"A name of more than {MAX_INDEXED_BYTES:,} bytes does not fit into Prefect's indexes"
        return UnusableInPrefect(why, "state", "name")
    return None


def _too_many_tags(new: NewRun, inherited: Sequence[Collection[str] | None]) -> UnusableInPrefect | None:
    """``enforce_maximum_related_resources`` and ``_flow_run_related_resources_from_orm``."""
    run = new.run
    most = len(run.tags) + _MAX_ROWS
    for tags in inherited:
        most += len(tags or ())
    if most <= MAX_RELATED:
        return None
    # The queue of a run of a deployment may not be looked up yet. A run with a pool will have one.
    has_queue = run.work_queue_id is not None or run.work_pool_id is not None
    has_pool = run.work_pool_id is not None
    rows = len(inherited) + new.inherits + has_queue + has_pool + (run.created_by is not None)
    count = len({*run.tags, *(tag for tags in inherited for tag in tags or ())})
    if count + rows <= MAX_RELATED:
        return None
    why = (
        f"Prefect can't change the state of this run if it has more than {MAX_RELATED - rows} tags, those of "
        f"its flow, deployment and parent task run among them; it has {count}"
    )
    return UnusableInPrefect(why, "tags")


class _Serializer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Pickle(_Serializer):
    type: Literal["pickle"] = "pickle"
    picklelib: Literal["cloudpickle", "pickle"] = "cloudpickle"
    picklelib_version: str | None = None


class _Json(_Serializer):
    type: Literal["json"]
    jsonlib: Literal["json"] = "json"
    object_encoder: Literal["prefect.serializers.prefect_json_object_encoder"] | None = None
    object_decoder: Literal["prefect.serializers.prefect_json_object_decoder"] | None = None
    dumps_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=0)
    loads_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=0)


_Plain = Annotated[_Pickle | _Json, Field(discriminator="type")]


class _Compressed(_Serializer):
    type: Literal["compressed/pickle", "compressed/json"]
    serializer: _Plain = Field(default_factory=_Pickle)
    compressionlib: Literal["lzma", "bz2", "gzip", "zlib"] = "lzma"


class _ResultRecordMetadata(BaseModel):
    """``ResultRecordMetadata``: Prefect's clients and workers parse it, and fail at a whole list
    over an invalid one. They import the modules that a serializer names: only usual ones pass.
    """

    storage_key: str | None
    expiration: DateTime | None = None
    serializer: Annotated[_Pickle | _Json | _Compressed, Field(discriminator="type")] = Field(
        default_factory=_Pickle
    )
    prefect_version: str = ""
    storage_block_id: UUID | None = None


# Prefect's serializers have up to six fields.
SERIALIZER_FIELDS = 8

_result = TypeAdapter(_ResultRecordMetadata)


def _no_result(run: FlowRun) -> UnusableInPrefect | None:
    data = None if run.state is None else run.state.data
    if not isinstance(data, dict) or "storage_key" not in data:
        return None
    pending = data.get("serializer")
    while isinstance(pending, dict):
        # Pydantic would write an error for each field.
        if len(pending) > SERIALIZER_FIELDS:
            return UnusableInPrefect("The serializer of a storage_key has too many fields", "state", "data")
        pending = pending.get("serializer")
    try:
        _result.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = (
            "With a storage_key Prefect's workers read it as a result's metadata, and fail over it: "
            f"{where}: {first['msg']}"
        )
        return UnusableInPrefect(why, "state", "data")
    return None
