"""``deploy/client/pyproject.toml``, which packages the client alone."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.worker_process import ROOT

FOLDER = ROOT / "deploy" / "client"


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def files() -> Iterator[Path]:
    wheel = project(FOLDER)["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel["force-include"]:
        path = (FOLDER / name).resolve()
        yield from path.rglob("*.py") if path.is_dir() else [path]


@pytest.mark.parametrize(
    "file", [file for file in files() if file.suffix == ".py"], ids=lambda file: str(file.relative_to(ROOT))
)
def test_its_files_import_each_other_relatively(file: Path) -> None:
    """The package has another name there, so it needs ``from .errors import``, not ``from
    worker.client.errors import``.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        assert "worker" not in {name.partition(".")[0] for name in names}, f"line {node.lineno}"


def test_it_needs_what_the_worker_needs() -> None:
    of_the_client, of_the_worker = (
        set(project(folder)["project"]["dependencies"]) for folder in (FOLDER, ROOT)
    )
    assert of_the_client < of_the_worker
