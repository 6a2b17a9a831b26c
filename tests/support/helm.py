"""Helm as a library, installed beside the project at first use; needs no cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import packages
from tests.support.worker_process import ROOT

CHART = ROOT / "deploy/helm/flow-run-worker"
REQUIREMENTS = Path(__file__).with_name("helm-requirements.txt")

# The library is large and never unloaded, so it gets a process of its own.
_LINT = "import helm_python, json, sys; print(json.dumps(helm_python.lint(sys.argv[1], strict=True)))"
_RENDER = """
import helm_python, json, sys
chart, values, name = sys.argv[1:]
try:
    with helm_python.Chart.load(chart) as loaded:
        print(json.dumps(loaded.render(json.loads(values), name=name)))
except helm_python.HelmError as error:
    sys.exit(str(error))
"""


class HelmMissing(Exception):
    """Helm can't be installed here; the message says why."""


class Refused(Exception):
    """Helm doesn't render the chart with these values; the message is Helm's own."""


def install() -> Path:
    """The folder of the library. It is made at the first call, and again when its version changes.

    Raises:
        HelmMissing: the installation fails.
    """
    folder = ROOT / ".cache/helm"
    try:
        packages.install_once(folder, REQUIREMENTS, "--only-binary", ":all:")
    except packages.InstallFailed as failed:
        raise HelmMissing(str(failed)) from failed
    return folder


def lint() -> dict[str, Any]:
    """The result of ``helm lint --strict`` on the chart."""
    report: dict[str, Any] = json.loads(_run(_LINT, str(CHART)))
    return report


def render(values: dict[str, Any] | None = None, name: str = "flow-run-worker") -> dict[str, str]:
    """The result of ``helm template`` on the chart: the text of each template.

    Raises:
        Refused: the values don't fit the chart.
    """
    rendered: dict[str, str] = json.loads(_run(_RENDER, str(CHART), json.dumps(values or {}), name))
    return rendered


def _run(program: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(install())}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout
