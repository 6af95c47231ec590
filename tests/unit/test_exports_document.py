"""The README's table of exports is the one that the table in docs/exports.md gives."""

from pathlib import Path

from tests.real_exports.tables import families, rows_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_sums_up_the_table_of_exports():
    rows = rows_of((ROOT / "docs/exports.md").read_text())
    assert len(rows) > 40
    assert "\n".join(families(rows)) in (ROOT / "README.md").read_text()
