"""Kubernetes manifests for the tests, built by kustomize; this needs no cluster."""

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.worker_process import ROOT

K8S = ROOT / "deploy/k8s"
# The first is older than every version that its makers supported when this was written. The second
# is the newest that has a schema.
VERSIONS = ("1.31", kubernetes_validate.latest_version())

Manifest = dict[str, Any]


def build(kustomization: str) -> list[Manifest]:
    """The output of ``kubectl kustomize`` for a folder below ``deploy/k8s``."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    command = ["kubectl", "kustomize", str(K8S / kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def the(kind: str, manifests: list[Manifest]) -> Manifest:
    """The only one of its kind."""
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """The pod template of each Deployment and Job."""
    return [each["spec"]["template"]["spec"] for each in manifests if each["kind"] in ("Deployment", "Job")]
