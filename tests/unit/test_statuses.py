"""Each refusal has its row in the table of statuses."""

import pytest

from worker.contract import errors
from worker.contract.statuses import MEANINGS, meaning_of, plain


@pytest.mark.parametrize(
    ("refusal", "means"),
    [
        (errors.HydrationRefused("Invalid JSON: x"), "__prefect_kind"),
        (errors.NoWorkPool("q", "5d9c"), "deployment without a pool"),
        (errors.NotAllowed("flow", "f", "WORKER_FLOW_PATTERN"), "does not allow this name"),
        (errors.ReplyToRefused("q"), "does not allow this name"),
        (errors.StatesNotTold(), "no states are told"),
        (errors.BodyUnreadable(), "not text or nested deeper"),
        (errors.ApiVersionRefused("The request specified API version 0.1.0 but"), "API version is wrong"),
        (errors.DeploymentNotFound("There is no deployment 'a/b'"), "has that name"),
        (errors.WorkPoolNotFound("'a' not found, and the worker may not make it: make it"), "may not make"),
        (
            errors.ParametersRefused("Error creating flow run: Validation failed"),
            "fit the deployment's schema",
        ),
        (errors.IntegrityConflict("There is no flow x."), "does not exist: a flow"),
        (
            errors.IntegrityConflict("The database does not keep this run: a trigger takes its row away."),
            "row away",
        ),
        (errors.IntegrityConflict('duplicate key value violates unique constraint "x"'), "in its way"),
        (errors.BodyTooLarge(2, 1), "WORKER_MAX_BODY_BYTES"),
        (errors.UnsupportedMediaType("The content type"), "plain JSON"),
        (errors.CheckTooCostly("The schema", "slow"), "too much time"),
        (errors.JobVariablesRefused("Error creating flow run: 'x'"), "job variables"),
        (errors.SchemaRefused("The parameter schema is invalid"), "job variables"),
        (errors.ParametersTooLarge(1), "job variables"),
        (errors.Unprocessable("The database cannot store this run: x"), "can't store the run"),
        (errors.Unprocessable("The deployment x can't be used: y"), "can't store the run"),
        (errors.UnusableInPrefect("Too many", "state", "data"), "could not handle"),
        (
            errors.ValidationRefused([{"loc": ["body", "parameter_schema"], "msg": "x"}], {}),
            "a field is wrong",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, errors.Refusal) else "",
)
def test_a_refusal_has_its_row(refusal: errors.Refusal, means: str) -> None:
    meaning = meaning_of(refusal.status, refusal.line)
    assert meaning is not None
    assert means in plain(meaning.means)
    assert meaning.remedy


def test_other_statuses_have_none_and_each_row_can_be_found() -> None:
    assert meaning_of(403, "x") is None
    assert meaning_of(None, "x") is None
    last = {each.status: each for each in MEANINGS}
    assert all(meaning_of(status, "another reason") is each for status, each in last.items())
    assert not [each for each in MEANINGS if set("`[]") & set(plain(each.means + each.remedy))]
