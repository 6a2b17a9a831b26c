"""Logs: one line for each event, with its bound values and without passwords."""

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Literal
from uuid import UUID

import pytest
import structlog

from worker.observability.logs import configure_logging

URL = "amqp://user:hunter2@host:5672/vhost"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def fail(url: str) -> None:
    password = "hunter2"
    raise ConnectionError(f"cannot reach {url}?password={password}")


@pytest.mark.parametrize("format", ["console", "json"])
def test_no_password_in_any_line(
    format: Literal["console", "json"], capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging(format, "info")
    log = structlog.get_logger()
    try:
        fail(URL)
    except ConnectionError as error:
        log.exception("failed", broker=URL)
        log.warning("broker_away", error=str(error))
        logging.getLogger("library").exception("cannot reach %s", URL)
    written = capfd.readouterr().err
    assert "hunter2" not in written
    assert "amqp://user:***@host:5672/vhost" in written
    assert "in fail" in written if format == "console" else '"name": "fail"' in written


@pytest.mark.parametrize("format", ["console", "json"])
def test_what_python_prints_by_itself_is_a_line_of_the_log(
    format: Literal["console", "json"], capfd: pytest.CaptureFixture[str]
) -> None:
    """A warning, an uncaught exception, one in a thread, one in a destructor."""

    class Failing:
        def __del__(self) -> None:
            fail(URL)

    configure_logging(format, "info")
    warnings.showwarning("old: amqp://user:hunter2@host", DeprecationWarning, "file.py", 1)
    thread = threading.Thread(target=fail, args=(URL,), name="helper")
    thread.start()
    thread.join()
    Failing()
    try:
        fail(URL)
    except ConnectionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    written = capfd.readouterr().err
    assert "hunter2" not in written
    for event in ("old: ", "thread_ended", "unraisable", "crashed"):
        assert event in written
    if format == "json":
        assert len([json.loads(line) for line in written.splitlines()]) == 4


@pytest.mark.parametrize("character", ["\x9b", "\u202e", "\u2028", "\u200b"])
def test_no_character_of_others_steers_the_console(character: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    log = structlog.get_logger()
    log.info("refused", message_id=f"a{character}b", several=[character], named={character: 1})
    logging.getLogger("library").warning("about %s", character)
    try:
        raise ValueError(character)
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed")
    assert character not in capfd.readouterr().err


def test_json_has_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    run_id = UUID(int=1)
    with structlog.contextvars.bound_contextvars(run_id=run_id):
        structlog.get_logger().info("created", message_id="a\nb", body=b"c")
    logging.getLogger("library").warning("slow: %s", "disk")
    ours, theirs = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (
        ours.items()
        >= {"event": "created", "level": "info", "run_id": str(run_id), "message_id": "a\nb"}.items()
    )
    assert theirs.items() >= {"event": "slow: disk", "level": "warning"}.items()
    assert ours["timestamp"].endswith("Z")


def test_what_a_producer_sent_does_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    structlog.get_logger().info("refused", message_id="a\n\x1b[2Jb", correlation_id="Zoë")
    written = capfd.readouterr().err
    assert len(written.splitlines()) == 1
    assert "\x1b[2J" not in written
    assert "Zoë" in written


def test_level_holds_for_ours_and_libraries_only_warn(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    structlog.get_logger().debug("detail")
    structlog.get_logger().info("ours")
    logging.getLogger("alembic").info("theirs")
    written = capfd.readouterr().err
    assert "ours" in written
    assert "detail" not in written
    assert "theirs" not in written
