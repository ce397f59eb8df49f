"""Nothing is unpickled or evaluated, downloads are checked, and what a dataset contains stays text."""

import csv
import json
import re
from pathlib import Path

import pytest

from erc import report
from erc.data import SOURCES, Corpus, Dialogue, Turn, split_table, table
from erc.folder import RunFolder
from erc.report import Arm, Run
from erc.settings import HEADS, Settings

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("src", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# What can run the code that a file contains.
DANGER = re.compile(
    r"(?<![\w.])(?:eval|exec|compile)\(|\bos\.(?:system|popen)\(|shell=(?!False)|trust_remote_code=(?!False)"
    r"|\bpickle\.(?:loads?|Unpickler)\b|from _?pickle import|object(?:_list)?\((?=.)|allow_pickle=(?!False)"
    r"|torch\.load\((?!.*weights_only=True)|weights_only=False"
    r"|\b(?:import|from) (?:dill|cloudpickle|joblib|shelve|marshal|yaml)\b"
)
SAFE = {  # ranks of one training: whoever may send them something decides already which code they run
    "dist.all_gather_object(values, value, group)",
    "everyones = gather_object([random])",
    "folder = RunFolder(broadcast_object_list([str(output)])[0])",
    "everyones = gather_object(list(zip(own, features, strict=True)))",
}


def test_nothing_is_unpickled_or_evaluated():
    found = {line.strip() for path in FILES for line in path.read_text("utf-8").splitlines() if DANGER.search(line)}
    assert found == SAFE
    assert len(FILES) > 50


def test_dangers_are_noticed_and_other_calls_are_not():
    dangers = (
        "torch.load(path)", "torch.load(path, weights_only=False)", "pickle.load(f)", "np.load(p, allow_pickle=True)",
        "import yaml", "from joblib import load", "from pickle import loads", "eval(text)", "exec(text)",
        "subprocess.run(text, shell=True)", "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "dist.broadcast_object_list(values)",
    )  # fmt: skip
    assert all(map(DANGER.search, dangers))
    safe = ("torch.load(path, weights_only=True)", "np.load(path)", "model.eval()", "re.compile(x)")
    assert not any(map(DANGER.search, safe))


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.url])
def test_downloads_are_by_https_with_a_checksum(name):
    source = SOURCES[name]
    assert source.url.startswith("https://")
    for file, checksum in source.files.items():
        assert file == Path(file).name  # it names no other folder
        assert set(checksum) <= set("0123456789abcdef")
        # A git object id is a SHA-1: EmoryNLP's repository lists no other. Its url names a commit.
        assert len(checksum) == (40 if name == "EmoryNLP" else 64)


def test_no_file_names_an_unencrypted_address():
    folders = [*FILES, *(ROOT / "examples").rglob("*.json")]
    assert [str(path) for path in folders if "http://" in path.read_text("utf-8")] == []


# What a dataset contains

HOSTILE = (
    "a|b", "<script>alert(1)</script>", "two\nlines\n\n# title", "`code`", "[x](https://example.org)", "**bold**",
    r"back\slash|", "$\\nothing{$", "../../outside", "&amp;",
)  # fmt: skip


def cells(line):
    """The cells of a line of a table, as Markdown reads them: a bar after a backslash is text."""
    found, escaped = [""], False
    for character in line:
        if character == "|" and not escaped:
            found.append("")
        else:
            found[-1] += character
        escaped = character == "\\" and not escaped
    return [cell.strip() for cell in found[1:-1]]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_table_stays_a_cell(text):
    lines = table([("head", text), (text, "1")]).split("\n")
    assert len(lines) == 3
    assert [len(cells(line)) for line in lines] == [2, 2, 2]
    assert cells(lines[0])[1] == cells(lines[2])[0]
    for line in (lines[0], lines[2]):
        assert "<" not in line
        for opening in "`[*":
            assert f"\\{opening}" in line or opening not in line


def test_ordinary_names_stay_as_they_are():
    row = ("very_sad", "joy (loud)", "SPCL x 0.2 + cross-entropy, epochs 2", "± 1.5", "Zoë's")
    assert cells(table([row, row]).split("\n")[0]) == list(row)


def test_the_table_of_a_hostile_dataset_has_its_columns():
    talk = Dialogue("0", tuple(Turn(str(i), "<b>", "x", i) for i in range(len(HOSTILE))))
    lines = split_table(Corpus("own", HOSTILE, (talk,), (talk,), (talk,))).split("\n")
    assert [len(cells(line)) for line in lines] == [4 + len(HOSTILE)] * 5


@pytest.fixture
def hostile(tmp_path):
    """A finished run whose classes and dialogues have the names above."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    rows = [("test", name, "0", name, *[name] * len(HEADS)) for name in HOSTILE]
    with folder.predictions.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("split", "dialogue", "utterance", "gold", *HEADS), *rows])
    score = {"weighted_f1": 0.5, "macro_f1": 0.5, "accuracy": 0.5, "per_class_f1": dict.fromkeys(HOSTILE, 0.5)}
    scores = dict.fromkeys(HEADS, score)
    result = {"dev": scores, "test": scores, "best_epoch": 1, "epochs": 1, "seconds": 1.0, "seed": 0}
    return Run(folder, Settings(dataset="own", encoder="org/<i>name|"), json.loads(json.dumps(result)))


def test_the_report_of_a_hostile_dataset_is_text_and_stays_in_its_folder(hostile, tmp_path):
    report.write_report([hostile], hostile.folder.path)
    page = hostile.folder.report.read_text("utf-8")
    assert "<" not in page
    assert "# title" not in page.split("\n")
    tables = [line for line in page.split("\n") if line.startswith("| ")]
    assert [len(cells(line)) for line in tables if "F1 by class" in line] == [1 + len(HOSTILE)]
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"predictions.csv", "report.md", "confusion.png"}
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {hostile.folder.path}
    assert hostile.test["gold"] == list(HOSTILE)


def test_figures_show_names_with_dollars_as_they_are(hostile):
    arm = Arm("$\\nothing{$", hostile.settings, (hostile,))
    report.confusion([arm]).canvas.draw()
    assert [text.get_text() for text in report.confusion([arm]).axes[0].texts].count("100%") == len(HOSTILE)
