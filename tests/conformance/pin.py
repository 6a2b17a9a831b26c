"""Makes a version of Prefect known to the tests: writes its requirements file, and the heads of its
migrations into the table that ``doctor`` reads.

``python -m tests.conformance.pin [VERSION]``; the default is the reference. An older version is
pinned once, and keeps the requirements that it was tested with.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance.prefect_server import ROOT, VERSION, install, requirements
from worker.operate.doctor.prefect_versions import FILE

# Requirements that a version needs to run, and that its metadata lack.
INSTEAD = {"3.8.8": "fastapi>=0.124,<0.125\nstarlette<0.51", "3.4.11": "fastapi<0.116"}
# The oldest Python that these tests support.
PYTHON = "3.11"
HEADER = "# Prefect {version} and all that it needs, on any system; written by tests/conformance/pin.py.\n"

# Asks the installed version for the newest migration of each database.
HEADS = """
import json
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
import prefect.server.database

migrations = Path(prefect.server.database.__file__).parent / "_migrations"
heads = {}
for dialect in ("postgresql", "sqlite"):
    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.set_main_option("version_locations", str(migrations / "versions" / dialect))
    heads[dialect] = ScriptDirectory.from_config(config).get_current_head()
print(json.dumps(heads))
"""


def pin(version: str) -> None:
    """Write the two files, and install the version."""
    file = requirements(version)
    file.write_text(HEADER.format(version=version) + resolve(version))
    print(file.relative_to(ROOT))
    known = json.loads(FILE.read_text())
    known[version] = heads(version)
    newest_first = dict(sorted(known.items(), key=lambda entry: _numbers(entry[0]), reverse=True))
    FILE.write_text(json.dumps(newest_first, indent=2) + "\n")
    print(f"{FILE.relative_to(ROOT)}: {known[version]}")


def resolve(version: str) -> str:
    """The exact requirements of a version with hashes, for each system and Python."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, instead = Path(folder, "wanted"), Path(folder, "instead")
        wanted.write_text(f"prefect=={version}\n")
        instead.write_text(INSTEAD.get(version, ""))
        compile_ = [sys.executable, "-m", "uv", "pip", "compile"]
        compile_ += ["--quiet", "--universal", "--generate-hashes"]
        compile_ += ["--no-header", "--no-annotate", "--python-version", PYTHON]
        done = subprocess.run(
            [*compile_, "--override", str(instead), str(wanted)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return done.stdout


def heads(version: str) -> dict[str, str]:
    """The newest migrations of an installed version, by database."""
    python = str(install(version) / "python")
    done = subprocess.run([python, "-c", HEADS], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    pin(sys.argv[1] if len(sys.argv) > 1 else VERSION)
