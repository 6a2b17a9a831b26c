"""The decisions of the pages: what is marked in a body, what is kept of the last hour, how workers
differ.
"""

import json
import time
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, SOCK_STREAM
from typing import Any

import pytest

from worker.contract.message import Message
from worker.operate.editing import Checking
from worker.operate.explaining import Problem, problems
from worker.operate.top import QueueView, View, WorkerView
from worker.settings import Settings
from worker.ui.history import SERIES, History
from worker.ui.marked import MAX_LINES, marked
from worker.ui.watching import Seen, Watching

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def problems_of(body: bytes) -> Sequence[Problem]:
    refusal = Checking(10**6, 0).refusal(Message(body, {}))
    return [] if refusal is None else problems(refusal)


def wrong(body: bytes, reason: str = "") -> list[tuple[str, str | None, bool]]:
    lines = marked(body, reason, problems_of(body)).lines
    return [(line.text.strip(), line.error, line.missing) for line in lines if line.error]


@pytest.mark.parametrize(
    ("body", "reason", "expected"),
    [
        ({"flow_id": 1}, "", [('"flow_id": 1', "UUID input should be", False)]),
        ({}, "", [('"flow_id":', "Field required", True)]),
        ({"flow_id": FLOW_ID, "x": [1]}, "", [('"x": [', "Extra inputs are not permitted", False)]),
        ({"flow_id": FLOW_ID, "tags": ["a", 2]}, "", [("2", "Input should be a valid string", False)]),
        # What only the database knows: the field that the reason names, or a text that it quotes.
        (
            {"flow_id": FLOW_ID, "tags": []},
            "tags: A run may have 100",
            [('"tags": []', "A run may have 100", False)],
        ),
        (
            {"flow_id": FLOW_ID, "name": "other"},
            f"There is no flow {FLOW_ID}.",
            [(f'"flow_id": "{FLOW_ID}",', f"There is no flow {FLOW_ID}.", False)],
        ),
    ],
)
def test_what_is_wrong_is_marked(
    body: dict[str, Any], reason: str, expected: list[tuple[str, str, bool]]
) -> None:
    found = wrong(json.dumps(body).encode(), reason)
    assert [(text, missing) for text, _, missing in found] == [
        (text, missing) for text, _, missing in expected
    ]
    for (_, why, _), (_, told, _) in zip(found, expected, strict=True):
        assert why is not None
        assert why.startswith(told)


def test_the_line_where_json_ends_is_marked() -> None:
    assert wrong(b'{\n"flow_id": 1,\n}') == [("}", "JSON decode error", False)]


@pytest.mark.parametrize("body", [b"\xff\x00", b"[" * 100_000, b"", b"nothing\x1b[2J", b'"' + b"x" * 10**6])
def test_any_body_can_be_shown(body: bytes) -> None:
    shown = marked(body, "body: " * 10, problems_of(body))
    assert len(shown.lines) <= MAX_LINES
    assert all(line.text.isprintable() for line in shown.lines)


def test_a_body_is_edited_without_changing_its_value() -> None:
    body = {"name": "Zoë \u202e\u009b", "list": [1.10, 10**30, None], "empty": {}}
    whole = marked(json.dumps(body).encode(), "").whole
    assert whole is not None
    assert whole.replace("\n", "").isprintable()
    assert json.loads(whole) == body


def test_many_lines_are_left_out() -> None:
    shown = marked(json.dumps([1] * (MAX_LINES + 8)).encode(), "")
    assert (len(shown.lines), shown.left_out) == (MAX_LINES, 10)


def test_the_last_hour_is_kept() -> None:
    history = History(interval=2)
    for number in range(2000):
        history.add(View(QueueView(0.0, ready=number), (), 0.0))
    points = history.since(-1)
    ready = list(SERIES).index("ready") + 1
    assert (len(points), points[0][ready], points[-1][ready]) == (1800, 200, 1999)
    assert [point[ready] for point in history.since(1998)] == [1998, 1999]
    assert history.since(2000) == []
    assert len(history.since(5000)) == 1800


def test_numbers_of_a_broker_that_is_away_are_gaps() -> None:
    history = History(interval=2)
    history.add(View(QueueView(0.0, error="away"), (WorkerView("http://w", error="away"),), 0.0))
    (point,) = history.since(0)
    values = dict(zip(SERIES, point[1:], strict=True))
    assert values["ready"] is None
    assert values["create_p99"] is None
    assert values["answering"] == 0


def addresses_of(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses, as that of a headless service in Kubernetes has."""
    found = [(AF_INET6 if ":" in each else AF_INET, SOCK_STREAM, 6, "", (each, 8080)) for each in addresses]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize(
    ("url", "addresses", "expected"),
    [
        ("http://workers:8080", ["10.0.0.2", "10.0.0.1"], ["http://10.0.0.1:8080", "http://10.0.0.2:8080"]),
        ("http://workers:8080", ["10.0.0.1", "fe80::1", "fe80::2"], ["http://workers:8080"]),
        ("http://workers:8080", ["fd00::1", "fd00::2"], ["http://[fd00::1]:8080", "http://[fd00::2]:8080"]),
        ("http://workers/a/", ["10.0.0.1", "10.0.0.2"], ["http://10.0.0.1/a", "http://10.0.0.2/a"]),
        ("https://workers", ["10.0.0.1", "10.0.0.2"], ["https://workers"]),
    ],
)
async def test_a_name_with_several_addresses_stands_for_a_worker_each(
    monkeypatch: pytest.MonkeyPatch, url: str, addresses: Sequence[str], expected: Sequence[str]
) -> None:
    addresses_of(monkeypatch, *addresses)
    assert await Watching(Settings(), [url], 1.0).resolved() == expected


async def test_a_name_that_is_unknown_is_kept() -> None:
    assert await Watching(Settings(), ["http://nowhere.invalid:1"], 1.0).resolved() == [
        "http://nowhere.invalid:1"
    ]


def test_figures_that_are_old_are_called_so() -> None:
    view = View(QueueView(0.0), (), 0.0)
    assert not Seen(view).faults
    (fault,) = Seen(view, at=time.monotonic() - 100).faults
    assert fault.what == "These figures are old"


def test_only_settings_that_differ_are_shown() -> None:
    one, other = Settings(prefetch=1, reply_to_pattern="a.*"), Settings(prefetch=2, reply_to_pattern="b.*")
    views = [
        WorkerView(f"http://{n}", version="1", settings=each.shared) for n, each in enumerate((one, other))
    ]
    views.append(WorkerView("http://2", version="0.2.0"))
    differing = Seen(View(QueueView(0.0), views, 0.0)).differing
    assert set(differing) == {"version", "prefetch", "reply_to_pattern"}
    assert differing["prefetch"] == {"1": ["http://0"], "2": ["http://1"]}
    assert "a.*" not in differing["reply_to_pattern"]


def test_shared_settings_have_no_secret() -> None:
    settings = Settings(
        amqp_url="amqp://u:secret@h/",
        database_url="postgresql+asyncpg://u:secret@h/d",
        management_url="http://u:secret@h",
        fleet_users="secret",
        bindings="secret:secret",
        reply_to_pattern="secret",
        database_kind="prefect",
        prefect_api_url="http://secret/api",
        prefect_api_auth_string="secret",
    )
    assert "secret" not in str(settings.shared)
