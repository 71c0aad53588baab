"""The code of a Markdown page: blocks that run one after the other in one namespace, and files that are run as programs."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python(?: +(?P<options>[^\n]*))?\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


class Snippet(NamedTuple):
    """line: of the page, where the code begins.  file: the program that it is, None if it is run with the page.

    needs: what must be importable, separated by commas.  command: how the page says that the program is run.
    """

    page: Path
    line: int
    code: str
    file: str | None
    needs: tuple[str, ...]
    command: str | None

    def run(self, namespace: dict) -> None:
        """With the page's own line numbers in tracebacks."""
        exec(compile("\n" * (self.line - 1) + self.code, self.page, "exec"), namespace)


def snippets(page: Path) -> list[Snippet]:
    """All of a page. A fence is ```python, or ```python file=NAME needs=PACKAGE,PACKAGE."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        options = dict(option.split("=", 1) for option in (match["options"] or "").split())
        assert not options.keys() - {"file", "needs"}, f"{page.name}: {match[0].splitlines()[0]}"
        line = text.count("\n", 0, match.start("code")) + 1
        file = options.get("file")
        command = re.search(rf"^((?:python|torchrun) .*{re.escape(file)})$", text, re.MULTILINE) if file else None
        found.append(
            Snippet(
                page, line, match["code"], file, tuple(options["needs"].split(",")) if "needs" in options else (), command and command[1]
            )
        )
    return found
