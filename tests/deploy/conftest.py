"""Shared by several tests of the deployment: the built image and Prometheus."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.container import Image
from tests.support.image import Builder, BuildFailed
from tests.support.worker_process import ROOT


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prometheus and promtool: from the search path, or from Debian's package,
    unpacked but not installed.
    """
    if found := shutil.which("promtool"):
        return Path(found).parent
    if not shutil.which("apt-get"):
        pytest.skip("no promtool here, and no Debian to fetch it from")
    folder = tmp_path_factory.mktemp("prometheus")
    subprocess.run(
        ["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=True, timeout=120, capture_output=True
    )
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=60)
    return folder / "usr/bin"


@pytest.fixture(scope="session")
def builder() -> Builder:
    """A builder that has built the image as docker-compose.yml says; an earlier build is reused."""
    try:
        builder = Builder()
    except BuildFailed as why:
        pytest.skip(f"no image is built here: {why}")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (build,) = [service["build"] for service in compose["services"].values() if "build" in service]
    builder.build(**build)
    return builder


@pytest.fixture(scope="session")
def image(builder: Builder) -> Iterator[Image]:
    with builder.mounted() as image:
        yield image
