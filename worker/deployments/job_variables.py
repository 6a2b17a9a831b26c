"""Job variables, checked against the base job template of a work pool: the template's defaults, the
deployment's and the request's, each over the one before it
(``validate_job_variables_for_deployment_flow_run``).
"""

from collections.abc import Collection
from copy import deepcopy
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from worker.contract.errors import BlockNotFound, JobVariablesRefused, SchemaRefused
from worker.deployments.schemas import Invalid, Schema, Unusable

# Templates that are kept ready, and deployments of which is known whether their own variables fit.
# Guesses at how many one worker meets at a time.
TEMPLATES_MAX = 64
DEPLOYMENTS_MAX = 512


class JobTemplate:
    """A base job template that is ready to be checked against; see :func:`job_template`.

    Attributes:
        blocks: the block documents that it takes defaults from. What they hold is not looked at, as
            Prefect encrypts it: they are taken to fit.
    """

    def __init__(self, text: str) -> None:
        self.blocks: frozenset[UUID] = frozenset()
        self._references: dict[str, UUID | str] = {}
        self._defaults: dict[str, Any] = {}
        self._schema: Schema | None = None
        self._wrong: Invalid | Unusable | None = None
        template = from_json(text)
        variables = template.get("variables") if isinstance(template, dict) else None
        if not variables:
            return
        try:
            self._schema = self._read(variables)
        except (Invalid, Unusable) as wrong:
            self._wrong = wrong
        self.blocks = frozenset(each for each in self._references.values() if isinstance(each, UUID))

    def _read(self, variables: Any) -> Schema:
        """``_get_base_config_defaults``: a default that does not fit is dropped, and nothing is
        required then, as the default may have been what is.
        """
        Schema(deepcopy(variables), mended=False)
        optional = Schema(deepcopy(variables), mended=False, required=False)
        all_fit = True
        for name, field in variables.get("properties", {}).items():
            if not isinstance(field, dict) or "default" not in field:
                continue
            default = field["default"]
            if isinstance(default, dict) and "$ref" in default:
                reference = default["$ref"]
                block = reference.get("block_document_id") if isinstance(reference, dict) else None
                if block is not None:
                    self._references[name] = _block_id(block)
            elif optional.fits({name: default}):
                self._defaults[name] = default
            else:
                all_fit = False
        return Schema(variables, none_for_default=True, required=all_fit, given=self._references)

    def check(self, *variables: Any, size: int = 0) -> None:
        """Check variables, each over the one before it and all over the defaults.

        Args:
            size: as of :meth:`Schema.check`.

        Raises:
            JobVariablesRefused: they don't fit.
            SchemaRefused: the template can't be checked against.
        """
        try:
            if self._wrong is not None:
                raise self._wrong.with_traceback(None)
            if self._schema is not None:
                together = dict(self._defaults)
                for each in variables:
                    if isinstance(each, dict):
                        together |= each
                self._schema.check(together, size)
        except Invalid as wrong:
            raise JobVariablesRefused(f"Error creating flow run: {wrong}") from None
        except Unusable as wrong:
            raise SchemaRefused(str(wrong)) from None

    def check_blocks(self, there: Collection[UUID]) -> None:
        """Raise BlockNotFound unless all :attr:`blocks` are among these."""
        for block in self._references.values():
            if block not in there:
                raise BlockNotFound(str(block))


@lru_cache(maxsize=TEMPLATES_MAX)
def job_template(text: str) -> JobTemplate:
    """The template that a JSON text holds."""
    return JobTemplate(text)


def check_job_variables(
    template: str, of_deployment: str | None, of_request: dict[str, Any] | None, size: int = 0
) -> None:
    """Check the job variables of a run.

    Args:
        template: JSON; a pool's base job template.
        of_deployment: JSON; the deployment's job variables.
        size: of the request, as for :meth:`Schema.check`.

    Raises:
        JobVariablesRefused, SchemaRefused: as :meth:`JobTemplate.check` does.
    """
    if of_request or not _fits_alone(template, of_deployment):
        job_template(template).check(_read(of_deployment), of_request, size=size)


@lru_cache(maxsize=DEPLOYMENTS_MAX)
def _fits_alone(template: str, of_deployment: str | None) -> bool:
    """Whether a deployment's variables fit without any of a request, as most requests have none."""
    try:
        job_template(template).check(_read(of_deployment))
    except (JobVariablesRefused, SchemaRefused):
        return False
    return True


def _read(text: str | None) -> Any:
    return None if text is None else from_json(text)


def _block_id(value: Any) -> UUID | str:
    """An id, or what stands in its place, which no block has."""
    try:
        return UUID(value)
    except (AttributeError, TypeError, ValueError):
        return str(value)
