"""docs/paper.md shows what the committed ablations came to, which their files say too."""

import json
from pathlib import Path
from statistics import median

import pytest

from fused_preact.paper.ablate import SMALL, SMALL_ROWS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = {
    "ablation_small": "A small version for two CPU cores, not a reproduction of the paper's tables: ",
    "ablation_deep": "Not the paper's setting, so not comparable with its numbers: ",
}


def page(name):
    return (RESULTS / name / "report.md").read_text(encoding="utf-8")


def report(name):
    return json.loads((RESULTS / name / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_docs_have_the_table_of_the_report(name):
    table = "\n".join(line for line in page(name).splitlines() if line.startswith("| "))
    assert table in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "words"), FOLDERS.items(), ids=FOLDERS)
def test_it_says_first_that_it_is_not_the_papers(name, words):
    assert page(name).splitlines()[0] == report(name)["headline"]
    assert report(name)["headline"].startswith(words)


@pytest.mark.parametrize("name", FOLDERS)
def test_medians_are_those_of_the_runs(name):
    for row in report(name)["rows"]:
        for number in ("train_loss", "test_error"):
            lasts = [run[number][-1] for run in row["runs"]]
            assert row[number] == {"median": median(lasts), "min": min(lasts), "max": max(lasts)}


def test_the_small_one_is_what_the_option_runs():
    small = report("ablation_small")
    assert [row["row"] for row in small["rows"]] == list(SMALL_ROWS)
    assert f"{SMALL['iterations']} iterations of batches of {SMALL['batch_size']}, 3 seeds" in small["headline"]
