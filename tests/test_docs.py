"""The code of README.md and docs/*.md runs, and their links lead somewhere."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types

import pytest
from torch import nn

import fused_preact
from tests.testing.snippets import PAGES, ROOT, snippets

WITH_CODE = [page for page in PAGES if any(s.file is None for s in snippets(page))]
PROGRAMS = [s for page in PAGES for s in snippets(page) if s.file]
RUNNERS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


# Not poisoned_memory, which the compiler does not take.
@pytest.mark.compile
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_code_runs(page, monkeypatch):
    """In order, in one module, which pickle finds: later snippets build on earlier ones."""
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(fused_preact=fused_preact, nn=nn)
    for snippet in snippets(page):
        if snippet.file is None:
            snippet.run(vars(module))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda s: s.file)
def test_program_runs(program, tmp_path):
    """By the command that the page gives."""
    assert program.command, f"{program.page.name} does not say how {program.file} is run"
    missing = [name for name in program.needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    (tmp_path / program.file).write_text(program.code, encoding="utf-8")
    runner, *arguments = shlex.split(program.command)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*RUNNERS[runner], *arguments], cwd=tmp_path, env=env, timeout=240, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (page.parent / target).exists(), target
