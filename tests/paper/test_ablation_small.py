"""docs/paper.md shows what the small ablation came to, which its files say too."""

import json
from pathlib import Path

import pytest

from fused_preact.paper.ablate import SMALL, SMALL_ROWS

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "benchmarks" / "results" / "ablation_small"
PAGE = (FOLDER / "report.md").read_text(encoding="utf-8")
REPORT = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))


def test_the_docs_have_the_table_of_the_report():
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| "))
    assert table in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_it_says_first_that_it_is_small():
    assert PAGE.splitlines()[0] == REPORT["headline"]
    assert REPORT["headline"].startswith("A small version for two CPU cores, not a reproduction of the paper's tables")


def test_it_is_what_the_option_runs():
    assert [row["row"] for row in REPORT["rows"]] == list(SMALL_ROWS)
    assert f"{SMALL['iterations']} iterations of batches of {SMALL['batch_size']}, 3 seeds" in REPORT["headline"]


@pytest.mark.parametrize("row", REPORT["rows"], ids=lambda row: row["row"])
def test_medians_are_those_of_the_runs(row):
    for name in ("train_loss", "test_error"):
        lasts = sorted(run[name][-1] for run in row["runs"])
        assert row[name] == {"median": lasts[1], "min": lasts[0], "max": lasts[2]}
