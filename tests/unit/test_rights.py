"""The rights of the documented roles: one list, which files and pages follow."""

import re
from pathlib import Path

from tests.support.rights import PRUNE_PREFECT, PRUNE_STANDALONE, grants
from worker.store.rights import PREFECT, SECRET

DEPLOY = Path(__file__).parents[2] / "deploy"


def statements(text: str) -> set[str]:
    return {" ".join(each.split()) for each in re.findall(r"GRANT [^;]*;", text)}


def test_the_file_of_grants_is_the_list() -> None:
    file = (DEPLOY / "postgresql/prefect-rights.sql").read_text()
    assert statements(file) == statements(grants(PREFECT, "flow_runs_worker"))


def test_the_page_has_the_rights_to_delete() -> None:
    page = statements((DEPLOY / "docs/rights-and-security.md").read_text())
    for rights in (PRUNE_STANDALONE, PRUNE_PREFECT):
        assert statements(grants(rights, "flow_runs_pruner")) <= page


def test_no_role_reads_a_secret() -> None:
    for right in (*PREFECT, *PRUNE_PREFECT):
        assert right.table not in SECRET or right.column == "id"
