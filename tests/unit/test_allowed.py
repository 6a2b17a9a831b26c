"""The lists of allowed names, and ways around each."""

from typing import Any

import pytest

from worker.checks.jobs import Verdict
from worker.contract.allowed import NAME_MAX, Allowed, Names, ReplyQueues
from worker.contract.errors import HydrationRefused, NotAllowed
from worker.runs.deployments.hydration import check_variables

PUBLIC = Names("public_.*", "WORKER_VARIABLE_PATTERN")


def no_template(template: Any) -> Verdict:
    raise AssertionError(f"nothing is rendered: {template}")


VARIABLES = {"secret": "s", "public_a": 1, "public_name": "secret"}


def variable(name: Any) -> dict[str, Any]:
    return {"__prefect_kind": "workspace_variable", "variable_name": name}


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        (None, "anything", True),
        ("none", "none", False),
        ("none", "", False),
        ("a|b", "b", True),
        ("a|b", "ab", False),
        ("a", "a\n", False),
        ("a", "A", False),
        (".*", "a\nb", False),
        (".*", "x" * NAME_MAX, True),
        (".*", "x" * (NAME_MAX + 1), False),
    ],
)
def test_a_pattern_is_for_the_whole_name(pattern: str | None, name: str, allowed: bool) -> None:
    assert (name in Names(pattern)) is allowed


def test_what_is_refused_is_told_with_its_setting_and_without_the_pattern() -> None:
    with pytest.raises(NotAllowed) as refused:
        PUBLIC.check("variable", "secret")
    assert refused.value.status == 400
    assert (
        refused.value.line
        == "The variable 'secret' is not allowed here: WORKER_VARIABLE_PATTERN does not match it."
    )


@pytest.mark.parametrize(
    "value",
    [
        variable("secret"),
        [{"deep": [variable("secret")]}],
        {"__prefect_kind": "json", "value": variable("secret")},
        {"__prefect_kind": "none", "value": variable("secret")},
        {"__prefect_kind": "jinja", "template": variable("secret")},
        variable({"__prefect_kind": "json", "value": '"secret"'}),
        variable(variable("public_name")),
        variable("missing"),
    ],
    ids=[
        "plain",
        "nested",
        "as json",
        "as none",
        "as jinja",
        "name as json",
        "name in a variable",
        "missing",
    ],
)
def test_a_variable_is_not_read_by_any_way(value: Any) -> None:
    with pytest.raises(NotAllowed):
        check_variables({"p": value}, VARIABLES, PUBLIC, no_template)


def test_variables_that_are_allowed_are_read() -> None:
    check_variables({"p": [variable("public_a"), {"secret": "secret"}]}, VARIABLES, PUBLIC, no_template)
    with pytest.raises(HydrationRefused):
        check_variables({"p": variable("public_missing")}, VARIABLES, PUBLIC, no_template)


@pytest.mark.parametrize(
    "text",
    [
        "{{ prefect.variables.secret }}",
        "{{prefect.variables.secret}}",
        "a {{\n prefect.variables.public_a }} b {{ prefect.variables.secret\t}}",
        "{{ prefect.variables.prefect.variables.secret }}",
        # A template may join two values.
        "{{ prefect.variab",
        "les.secret }}",
        "{{ {{ prefect.variables.public_a }}",
    ],
)
def test_no_placeholder_in_job_variables_reads_a_variable(text: str) -> None:
    allowed = Allowed(variables=PUBLIC)
    for value in (text, [text], {"env": {"A": [text]}}):
        with pytest.raises(NotAllowed):
            allowed.check_job_variables({"env": value})
    Allowed().check_job_variables({"env": text})


def test_other_placeholders_stay() -> None:
    Allowed(variables=PUBLIC).check_job_variables(
        {"env": {"A": "{{ prefect.variables.public_a }}{{ $HOME }}", "B": 1, "C": None, "D": "{}"}}
    )


def test_job_variables_are_allowed_by_their_names() -> None:
    allowed = Allowed(job_variables=Names("env|cpu"))
    for fine in (None, {}, {"env": {"command": "x"}, "cpu": 1}):
        allowed.check_job_variables(fine)
    for wrong in ({"command": "rm"}, {"env": {}, "env.PATH": ""}, {"": 1}):
        with pytest.raises(NotAllowed):
            allowed.check_job_variables(wrong)


@pytest.mark.parametrize(
    "queue",
    [
        "mine",
        *(
            f"{name}{suffix}"
            for name in ("mine", "others.create")
            for suffix in (".dead", ".events", ".states.cursor")
        ),
        "/queue/mine",
        "/queue/others.dead",
        "/amq/queue/others.events",
        "/queues/others.states.cursor",
    ],
)
@pytest.mark.parametrize("pattern", [None, ".*"])
def test_a_queue_of_workers_is_never_replied_to(queue: str, pattern: str | None) -> None:
    assert queue not in ReplyQueues(pattern, "mine")


def test_both_names_of_a_reply_queue_must_be_allowed() -> None:
    allowed = ReplyQueues("/queue/replies-.*|replies-[0-9]+", "mine")
    assert "/queue/replies-1" in allowed
    assert "/queue/replies-x" not in allowed
    assert "/queue/other" not in allowed
    none = ReplyQueues("none", "mine")
    assert "amq.rabbitmq.reply-to" in none
    assert "replies" not in none
