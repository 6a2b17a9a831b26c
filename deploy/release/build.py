"""Builds the two distributions that could be published, from the commit that is checked out.

    python deploy/release/build.py https://github.com/OWNER/REPOSITORY [FOLDER]

The clone does not know its public address, so it is given here: the distributions link to it, and
the links of their long descriptions are made absolute, since the index shows no other files. The
address has the forms of GitHub: `/blob/TAG/FILE` shows a file, `/raw/TAG/FILE` is one.

Needs the packages of deploy/requirements/release.txt. Prints nothing but what the build prints.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
from tempfile import TemporaryDirectory
from typing import Any

import tomlkit

ROOT = Path(__file__).resolve().parents[2]

# In Markdown, an image or a link to a file of the repository, with or without a heading.
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|mailto:)(?P<target>[^)]+)\)")


def absolute(page: str, place: PurePosixPath, address: str, tag: str) -> str:
    """A page's text with absolute links.

    Args:
        place: the page in the repository.
    """

    def link(found: re.Match[str]) -> str:
        image, text, target = found["image"], found["text"], found["target"]
        file, hash_sign, heading = target.partition("#")
        path = normpath(str(place.parent / file)) if file else str(place)
        kind = "raw" if image else "blob"
        return f"{image}[{text}]({address}/{kind}/{tag}/{path}{hash_sign}{heading})"

    return LINK.sub(link, page)


def describe(project: Path, page: str, address: str, documentation: str) -> None:
    """Give a project its addresses and its long description.

    Args:
        documentation: the page's address.
    """
    file = project / "pyproject.toml"
    toml: dict[str, Any] = tomlkit.parse(file.read_text())
    metadata: dict[str, Any] = toml["project"]
    metadata["readme"] = "README.md"
    metadata["urls"] = {
        "Documentation": documentation,
        "Source": address,
        "Issues": f"{address}/issues",
    }
    file.write_text(tomlkit.dumps(toml))
    (project / "README.md").write_text(page)


def gather(client: Path) -> None:
    """Copy the client's files into its folder, so that its source is whole without the clone."""
    file = client / "pyproject.toml"
    toml: dict[str, Any] = tomlkit.parse(file.read_text())
    hatch = toml["tool"]["hatch"]
    for source, target in hatch["build"]["targets"]["wheel"]["force-include"].items():
        place = client / target
        place.parent.mkdir(parents=True, exist_ok=True)
        if (client / source).is_dir():
            shutil.copytree(client / source, place)
        else:
            shutil.copy(client / source, place)
    hatch["build"]["targets"]["wheel"] = {"packages": ["flow_run_worker"]}
    hatch["version"]["path"] = "flow_run_worker/__init__.py"
    file.write_text(tomlkit.dumps(toml))


def build(address: str, folder: Path) -> None:
    """Build a source distribution and a wheel of each of the two.

    Args:
        folder: for the four files; made if it is missing.
    """
    address = address.rstrip("/")
    with TemporaryDirectory() as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", clone], check=True)
        version = re.search(r'__version__ = "(.+)"', (clone / "worker/__init__.py").read_text())
        assert version
        for project, place in (("deploy/client", "deploy/docs/python.md"), ("", "README.md")):
            page = absolute((clone / place).read_text(), PurePosixPath(place), address, f"v{version[1]}")
            if project:
                page = re.sub(r"(?<!_)\bworker\.client", "flow_run_worker.client", page)
                gather(clone / project)
            describe(clone / project, page, address, f"{address}/blob/v{version[1]}/{place}")
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
            subprocess.run([*command, clone / project], check=True)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "dist").absolute())
