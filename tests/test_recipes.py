"""Recipes and cheat sheet: every command runs as it stands on the page, in order, in a project baked for that page.

A block of bash is run. One of python or yaml whose first line is `# path` is a file to write; one of python that begins
with `# %%` is a cell of a notebook. One of text is what the block of bash before it prints, or the cells do, among
other lines; `...` stands for anything. A block of no language is only read.
"""

import compileall
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from cookiecutter.main import cookiecutter

from tests.conftest import INNER, ROOT, WHO, commit, run, search_path

pytestmark = pytest.mark.slow
INDEX = ROOT / "recipes" / "README.md"
PAGES = {path.stem: path for path in [ROOT / "docs" / "cheatsheet.md", *sorted(INDEX.parent.glob("[a-z]*.md"))]}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def follow(page: Path, project: Path, template: Path, warm_python: str) -> None:
    """Does what a page says in a project."""
    environment = {"OMP_NUM_THREADS": "1", "TEMPLATE": str(template), "PATH": search_path(warm_python), **WHO}
    environment["STARTED_BY_TEST"] = ""  # or it ended with the test of another page, when two are followed at once
    printed, cells = "", list[Any]()
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if block.startswith("# %%\n"):
            cells.append(nbformat.v4.new_code_cell(block))
            continue
        named = re.match(r"# (\S+/?\S*\.\w+)\n", block)
        if language in ("python", "yaml"):
            assert named, f"{page.name}: a block of {language} begins with the name of its file\n{block}"
            (project / named[1]).write_text(block, encoding="utf-8")
        elif language == "bash":
            tidy = "trap 'builtin kill $(jobs -p) 2>/dev/null || true' EXIT\n"  # a server that nobody asks any more
            tidy += 'kill() { builtin kill "$@"; sleep 0.5; }\n'  # what the warm python runs dies a moment after it
            done = run("timeout", "600", "bash", "-e", "-c", tidy + block, cwd=project, **environment)
            printed = done.stdout + done.stderr
            assert done.returncode == 0, f"{page.name}:\n{block}\n{printed}"
            assert "Warning" not in printed, f"{page.name}:\n{block}\n{printed}"
        elif language == "text":
            printed = run_cells(cells, project) if cells else printed
            for line in block.splitlines():
                pattern = re.escape(line.strip()).replace(r"\.\.\.", ".*")
                assert re.search(pattern, printed), f"{page.name}: nothing like {line!r} in\n{printed}"


def run_cells(cells: list[Any], folder: Path) -> str:
    """What the cells of a notebook print, one after the other in one kernel."""
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "page.ipynb")
    done = run("jupyter-execute", "--inplace", "page.ipynb", cwd=folder)  # nbclient's
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = [one for cell in nbformat.read(folder / "page.ipynb", 4).cells for one in cell.get("outputs", [])]
    return "".join(one.get("text", "") for one in outputs)


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, template: Path, warm_python: str
) -> Iterator[Callable[[str], Future[None]]]:
    """What came of a page. Two pages are followed at once, unless these tests are spread over processes already."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))  # cookiecutter keeps the answers there
        baked = cookiecutter(str(ROOT), no_input=True, output_dir=str(folder))
    compileall.compile_dir(baked, quiet=2)  # once for all pages
    newer = Path(shutil.copytree(template, folder / "lightning-template"))
    with (newer / INNER.name / "engine" / "errors.py").open("a") as file:
        file.write("# a later version\n")
    commit(newer)

    def begin(page: str) -> None:
        follow(PAGES[page], Path(shutil.copytree(baked, folder / page / "my_project")), newer, warm_python)

    spread = "PYTEST_XDIST_WORKER" in os.environ
    mine = [item.callspec.params for item in request.session.items if item.path == Path(__file__) and _has_page(item)]
    with ThreadPoolExecutor(1 if spread else 2) as pool:
        begun = {} if spread else {one["page"]: pool.submit(begin, one["page"]) for one in mine}
        yield lambda page: begun.get(page) or pool.submit(begin, page)


def _has_page(item: pytest.Item) -> bool:
    return "page" in getattr(getattr(item, "callspec", None), "params", {})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(outcome: Callable[[str], Future[None]], page: str) -> None:
    outcome(page).result()


def test_a_page_is_a_screen_and_leads_nowhere_wrong() -> None:
    for page in [INDEX, *PAGES.values()]:
        text = page.read_text(encoding="utf-8")
        assert text.startswith("# "), page
        for part in text.split("\n## ") if page.stem == "my_own" else [text]:  # which has an anchor for each thing
            assert part.count("\n") <= 60, page
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_index_has_every_page_once() -> None:
    links = re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8"))
    assert sorted(links) == [path.name for path in sorted(INDEX.parent.glob("[a-z]*.md"))]
