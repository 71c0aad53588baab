"""The README's figures are those of the files that it names, and its commands exist."""

import json
import re
from pathlib import Path

from benchmarks import memory
from fused_preact.bench.report import table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def test_the_demo_table_is_that_of_its_file():
    report = json.loads((RESULTS / "demo_resnet164_cpu.json").read_text(encoding="utf-8"))
    assert table(report) in README


def test_the_ratios_are_those_of_their_files():
    rows = [line for line in README.splitlines() if re.match(r"\| preact_\S+, \d+, ", line)]
    cells = [cell for row in rows for cell in re.findall(r"\[([\d.]+)x\]\(benchmarks/results/(\w+\.json)\)(?:, ([\d.]+)x)? \|", row)]
    assert len(cells) == 10
    for eager, name, compiled in cells:
        step = json.loads((RESULTS / name).read_text(encoding="utf-8"))["ratios"]["step"]
        assert [f"{step['eager']:.2f}", f"{step['compile']:.2f}" if "compile" in step else ""] == [eager, compiled], name


def test_the_memory_table_is_that_of_its_file():
    result = json.loads((RESULTS / "memory_cpu.json").read_text(encoding="utf-8"))
    assert memory.table(result) in README


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in set(re.findall(r"\bmake ([a-z-]+)", README)) - {"it"}:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"make {name}"
