"""The documentation runs: every Python block, what it says is printed, and a page entry for every public name."""

import ast
import base64
import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import spcl_loss

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A Python block and, if it is the next block on the page, the text block with what the Python block prints.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:(?:(?!```)[^\n]*\n)*^```text\n(?P<printed>.*?)^```$)?", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"-?\d+\.\d+")


def page_id(page):
    return str(page.relative_to(ROOT))


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


each_page = pytest.mark.parametrize("page", PAGES, ids=page_id)
RUNNABLE = [page for page in PAGES if BLOCK.search(read(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=page_id)
def test_python_blocks_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a block that saves a file leaves nothing in the project
    text = read(page)
    namespace = {"__name__": "__main__"}  # the blocks of a page continue one another
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block["code"], str(page), "exec"), namespace)
        assert_same_output(printed.getvalue(), block["printed"] or "")


def assert_same_output(actual, expected):
    """Equal text; a decimal number may differ by 0.02, since machines round differently."""
    assert NUMBER.sub("#", actual) == NUMBER.sub("#", expected), f"the block printed:\n{actual}"
    for got, want in zip(NUMBER.findall(actual), NUMBER.findall(expected), strict=True):
        assert float(got) == pytest.approx(float(want), abs=0.02), f"the block printed:\n{actual}"


def test_the_readme_begins_with_the_quickstart_and_what_it_prints():
    first, *others = BLOCK.finditer(read("README.md"))
    assert first["code"] == read("examples/quickstart.py")
    assert any(block["printed"] for block in (first, *others))


def test_every_public_name_has_an_api_entry():
    documented = re.findall(r"^::: spcl_loss\.(\w+)$", read("docs/api.md"), re.MULTILINE)
    assert sorted(documented) == sorted(name for name in spcl_loss.__all__ if name != "__version__")


def test_the_table_of_methods_is_the_librarys():
    text = read("docs/maths.md")
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.search(r"^\| method \|.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)[0].splitlines()
    )
    names = [name.strip("`") for name in head[1:-1]]
    table = {}
    for row in rows:
        values = [ast.literal_eval(re.match("`(.*?)`", cell)[1]) for cell in row[1:-1]]
        table[re.match(r"\w+", row[0])[0].lower()] = dict(zip(names, values, strict=True))
    defaults = {"easy_threshold": None, "prototype_anchors": False}
    assert table == {method: defaults | options for method, options in spcl_loss.METHODS.items()}


def test_the_readme_reads_on_a_package_index_too():
    text = read("README.md")
    assert len(text.splitlines()) <= 120
    targets = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert targets
    assert not [target for target in targets if not target.startswith("https://")]


def test_links_into_the_repository_lead_to_files():
    project = read("pyproject.toml")
    repository = re.search(r'^Repository = "(.+)"$', project, re.MULTILINE)[1]
    assert f"repo_url: {repository}\n" in read("mkdocs.yml")
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    paths = [
        path
        for page in PAGES
        for prefix in (f"{repository}/blob/main/", f"{repository}/tree/main/", f"{raw}/main/")
        for path in re.findall(re.escape(prefix) + r'([^)#"\s]+)', read(page))
    ]
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def anchors(page):
    """Of the headings of a page, as mkdocs and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_page
def test_links_to_headings_lead_to_headings(page):
    links = re.findall(r"\]\((?!https?://)((?:[^)#]+\.md)?)#([^)]+)\)", read(page))
    assert not [link for link in links if link[1] not in anchors((page.parent / link[0]) if link[0] else page)]


@each_page
def test_relative_links_and_pictures_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", read(page))
    pictures = re.findall(r'(?:src|srcset)="(?!https?://)([^"]+)"', read(page))
    assert not [target for target in links if not (page.parent / target).exists()]
    assert not [target for target in pictures if not (page.parent / target).is_file()]


def test_the_pictures_of_the_idea_are_what_their_script_draws():
    script = runpy.run_path(str(ROOT / "docs/tools/idea.py"))
    assert list(script["THEMES"]) == ["light", "dark"]
    for name, draw in script["PICTURES"].items():
        for scheme, theme in script["THEMES"].items():
            committed = read(f"docs/figures/{name}-{scheme}.svg")
            assert committed == draw(theme), "run docs/tools/idea.py"


@each_page
def test_code_is_no_wider_than_88_columns(page):
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 88]


@pytest.mark.parametrize("module", sorted((ROOT / "src/spcl_loss").rglob("*.py")), ids=page_id)
def test_docstrings_call_their_examples_as_the_site_expects(module):
    # a section "Example:" becomes a box, with the lines of the example run together
    text = read(module)
    assert not re.search(r"^ *Example:$", text, re.MULTILINE)
    assert not re.search(r"^ *(?:>>>|\.\.\.) .{85,}$", text, re.MULTILINE)  # 88 columns, as on every page


def test_without_a_browser_the_measuring_of_the_site_fails_and_says_what_to_install(tmp_path):
    (tmp_path / "index.html").write_text("<p>a page</p>", encoding="utf-8")
    command = [sys.executable, str(ROOT / "docs/tools/check_site.py"), str(tmp_path)]
    run = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "neither is installed. Install one" in run.stderr


def test_workflows_call_what_the_makefile_has():
    workflows = "".join(read(path) for path in sorted((ROOT / ".github/workflows").glob("*.yml")))
    called = set(re.findall(r"\bmake ([a-z-]+)", workflows))
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert called == {"check", "check-site", "test", "test-fast"} & targets


def test_the_pythons_of_the_classifiers_are_those_of_the_workflow():
    listed = re.findall(r"Python :: (3\.\d+)\"", read("pyproject.toml"))
    workflow = read(".github/workflows/tests.yml")
    assert ast.literal_eval(re.search(r"python: (\[.*\])", workflow)[1]) == listed


def test_the_version_is_the_same_everywhere():
    citation = read("CITATION.cff")
    changelog = read("CHANGELOG.md")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == spcl_loss.__version__
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == spcl_loss.__version__


def test_the_frames_of_the_interactive_page_are_what_its_script_writes():
    script = runpy.run_path(str(ROOT / "docs/tools/play.py"))
    frames = json.loads(read("docs/play/frames.json"))
    values = [list(script[name]) for name in ("STEPS", "TEMPERATURES", "SUPPORTS", "RATIOS")]
    assert [frames[name] for name in ("steps", "temperatures", "supports", "ratios")] == values
    settings = len(values[1]) * len(values[3])
    assert len(frames["runs"]) == settings * (len(values[2]) + 2)
    size = script["CLASSES"] * (script["SHOWN"] + 2)
    assert {len(base64.b64decode(run)) for run in frames["runs"].values()} == {len(values[0]) * size}
    # one training anew; machines round differently, so only its first frame is compared, before any step
    again = base64.b64decode(script["run"]("spcl", values[1][0], values[2][0], values[3][0]))
    stored = base64.b64decode(frames["runs"]["spcl 0 0 0"])
    points = script["CLASSES"] * script["SHOWN"]
    turns = [(a - b + 127) % 255 - 127 for a, b in zip(again[:points], stored[:points], strict=True)]
    assert max(map(abs, turns)) <= 1
