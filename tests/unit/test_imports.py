"""The import rules in ``pyproject.toml`` under ``tool.importlinter``."""

from importlinter.cli import lint_imports


def test_rooms_import_only_what_stands_below_them_and_no_two_modules_each_other() -> None:
    assert lint_imports(show_timings=False, verbose=True) == 0
