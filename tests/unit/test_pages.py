"""The pages are correct: their links lead somewhere, their commands and settings exist, and the
walk through the code names files that exist.
"""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.benchmarks import latency_plot
from tests.support import settings_page
from tests.support.worker_process import ROOT
from worker import __version__
from worker.cli import app
from worker.cli.run import settings_app
from worker.contract import statuses
from worker.settings import PREFIX, Settings

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [
    README,
    CONTRIBUTING,
    CHANGELOG,
    *sorted((ROOT / "deploy").glob("*.md")),
    *sorted((ROOT / "deploy/docs").glob("*.md")),
    ROOT / "tests/conformance/README.md",
]

MAX_README_LINES = 120
MAX_LINE = 100
# Each clone of the project includes its pictures.
MAX_PICTURE_BYTES = 60_000
MAX_PICTURES_BYTES = 200_000

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(flow-run-worker|make|python -m)(?: |$)")
ALL_TESTS = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
_COMMAND_LINE = typer.main.get_command(app)
# Its options are made on access.
_RUN = typer.main.get_command(settings_app())

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> Iterator[str]:
    """The code of a page: its blocks and its text in backquotes."""
    text = page.read_text()
    yield from (block.group() for block in _FENCED.finditer(text))
    prose = _FENCED.sub("", text)
    yield from (block.group() for block in _INDENTED.finditer(prose))
    yield from _INLINE.findall(prose)


def commands(page: Path) -> Iterator[list[str]]:
    """Our own commands in a page's code, each as its words."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ")
            # Remove variables set for this command alone.
            words = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", words)
            if _COMMAND.match(words):
                yield shlex.split(words.partition("  #")[0].partition(" > ")[0], posix=True)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pages
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        program = words.pop(0)
        if program == "make":
            exists_in_makefile(words)
        elif program == "python":
            exists_as_module(words[1])
        else:
            exists_on_command_line(words)


def exists_in_makefile(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        if "=" in word:
            assert re.search(rf"\b{word.partition('=')[0]}\b", (ROOT / "Makefile").read_text()), word
        else:
            assert word in targets, word


def exists_as_module(name: str) -> None:
    assert name in {"pytest", "worker"} or importlib.util.find_spec(name), name


def exists_on_command_line(words: list[str]) -> None:
    command: Any = _COMMAND_LINE
    for word in words:
        if hasattr(command, "commands") and not word.startswith("-"):
            assert word in command.commands, f"{command.name} {word}"
            command = _RUN if word == "run" else command.commands[word]
        elif word.startswith("--"):
            options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            assert word.partition("=")[0] in {*options, "--help"}, f"{command.name} {word}"


@pages
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"[`\s]((?:tests|worker|deploy)/[\w./-]+\w)", text):
        assert (ROOT / path).exists(), path
    # Tests in a block are a user's.
    for name in re.findall(r"\btest_\w+(?!\w|\.py)", _FENCED.sub("", text)):
        assert f"def {name}(" in ALL_TESTS or f"/{name}.py" in text, name


@pages
def test_settings_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]*[A-Z])\b(?!…)", page.read_text()))
    # Settings of the tests and of the compose file, and removed ones in the changelog.
    others = {"TEST_GENERATED", "TEST_WITHOUT_PREFECT", "TEST_REPEAT", "PASSWORD"}
    assert {name.lower() for name in named - others} <= Settings.model_fields.keys()


@pages
def test_prose_wraps(page: Path) -> None:
    """Except tables, code, and lines with a single link."""
    text = _INDENTED.sub("", _FENCED.sub("", page.read_text()))
    long = [
        line
        for line in text.splitlines()
        if len(line) > MAX_LINE and not line.startswith("|") and not line.startswith("[")
    ]
    assert long == []


@pages
def test_what_is_filled_in_stands_between_two_comments(page: Path) -> None:
    text = page.read_text()
    for name in ("speed", "memory"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") <= 1


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_each_picture_stands_on_a_page_and_all_are_small() -> None:
    """:func:`test_links_lead_somewhere` checks that a page's picture exists."""
    shown = {
        (page.parent / path).resolve(): text
        for page in PAGES
        for text, path in _PICTURE.findall(page.read_text())
    }
    pictures = {file: file.stat().st_size for file in (ROOT / "deploy/docs/pictures").iterdir()}
    assert shown.keys() == pictures.keys()
    assert all(shown.values()), "a picture without words for those who can't see it"
    assert max(pictures.values()) < MAX_PICTURE_BYTES
    assert sum(pictures.values()) < MAX_PICTURES_BYTES


def test_plot_of_latencies_has_the_figures_of_its_table() -> None:
    """If it fails: ``python -m tests.benchmarks.latency_plot``."""
    drawn = re.search("<dc:description>(.*)</dc:description>", latency_plot.PICTURE.read_text(), re.DOTALL)
    assert drawn is not None
    assert drawn[1].splitlines() == latency_plot.table() != []


def test_page_of_settings_is_current() -> None:
    """If it fails: ``python -m tests.support.settings_page > deploy/docs/settings.md``."""
    assert (ROOT / "deploy/docs/settings.md").read_text() == settings_page.page()


def test_table_of_statuses_is_current() -> None:
    """If it fails: put ``worker.contract.statuses.table()`` there."""
    assert f"\n\n{statuses.table()}\n\n" in (ROOT / "deploy/docs/contract.md").read_text()


def test_walk_through_the_code_names_files_that_are_there_and_all_of_the_line() -> None:
    section = CONTRIBUTING.read_text().partition("## A request's way")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_/]+(?:/|\.py))`", section)) - {"worker/"}
    assert [each for each in named if not (ROOT / "worker" / each).exists()] == []
    stages = {f"line/{file.name}" for file in (ROOT / "worker/line").glob("*.py")} - {"line/__init__.py"}
    assert stages - named == set()


def test_the_map_of_rooms_is_that_of_the_linter() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = [layer.replace(" |", ",") for layer in rules[0]["layers"] if layer != "__main__"]
    assert "".join(f"    {layer}\n" for layer in rooms) in CONTRIBUTING.read_text()


def test_changelog_begins_with_this_version() -> None:
    (newest, *_) = re.findall(r"^## (\S+)", CHANGELOG.read_text(), re.MULTILINE)
    assert newest == __version__
