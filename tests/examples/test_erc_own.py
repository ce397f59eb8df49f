"""Dialogues of one's own, and the labels that a finished run gives to new ones."""

import csv
import json
import shutil

import pytest

import erc_predict
import erc_tiny
from erc import command
from erc.data import load_corpus
from erc.files import InputError
from erc.inputs import lay_out
from erc.settings import HEADS
from erc.train import train


def as_json(dialogues, labels):
    """Dialogues as the files hold them."""
    return [
        [{"speaker": turn.speaker, "text": turn.text, "label": labels[turn.label]} for turn in dialogue.turns]
        for dialogue in dialogues
    ]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the tiny corpus in three files."""
    folder, corpus = tmp_path_factory.mktemp("own"), erc_tiny.corpus()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.json").write_text(json.dumps(as_json(getattr(corpus, split), corpus.labels)))
    return folder


@pytest.fixture(scope="module")
def run(own, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = erc_tiny.settings(encoder, dataset="own", inputs="dialogues", epochs=2)
    train(settings, load_corpus("own", own), folder)
    return folder


def test_the_files_are_read_as_they_are_meant(own):
    corpus, tiny = load_corpus("own", own), erc_tiny.corpus()
    assert corpus.labels == tuple(sorted(erc_tiny.LABELS))
    for split in ("train", "dev", "test"):
        assert as_json(getattr(corpus, split), corpus.labels) == as_json(getattr(tiny, split), tiny.labels)


def test_a_turn_without_a_label_is_context(own, tmp_path):
    shutil.copytree(own, tmp_path, dirs_exist_ok=True)
    talk = [{"speaker": "Ann", "text": "one"}, {"speaker": "Ben", "text": "two", "label": "Glad "}]
    (tmp_path / "dev.json").write_text(json.dumps([talk]))
    (dialogue,) = load_corpus("own", tmp_path).dev
    assert [turn.label for turn in dialogue.turns] == [None, sorted(erc_tiny.LABELS).index("glad")]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("train.json", [[{"speaker": "a", "text": "b", "label": "c"}]], "at least two classes; it has 1"),
        (
            "dev.json",
            [[{"speaker": "a", "text": "b", "label": "other"}]],
            r"\[0\]\[0\], label: expected one of .* \(the training file decides .*\); received 'other'",
        ),
        ("test.json", [[{"speaker": "a"}]], r"\[0\]\[0\], text: expected text; received null, or the key is missing"),
        ("test.json", [], "expected dialogues; received none"),
    ],
)
def test_faults_name_file_and_place(own, tmp_path, file, content, reason):
    shutil.copytree(own, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason) as error:
        load_corpus("own", tmp_path)
    assert file in str(error.value)


def test_without_a_folder_the_command_says_what_to_give(tmp_path, capsys):
    assert command.main("own", None, ["--output", str(tmp_path / "run")]) == 2
    assert "--data-dir must name the folder" in capsys.readouterr().err
    assert command.main("own", None, ["--output", str(tmp_path / "run"), "--data-dir", str(tmp_path)]) == 2
    assert "has no train.json, dev.json, test.json" in capsys.readouterr().err


@pytest.mark.parametrize("head", [None, *HEADS])
def test_new_dialogues_get_the_labels_that_the_run_gave_them(run, own, capsys, head):
    """The dev set stands for new dialogues: the run wrote down what every head says of it."""
    assert erc_predict.main([str(run), str(own / "dev.json"), *(["--head", head] if head else [])]) == 0
    spoken = json.loads(capsys.readouterr().out)
    with (run / "predictions.csv").open(newline="") as file:  # the run was selected by its prototypes
        expected = [row[head or "prototype"] for row in csv.DictReader(file) if row["split"] == "dev"]
    assert [turn["label"] for dialogue in spoken for turn in dialogue] == expected
    assert len(set(expected)) > 1
    given = json.loads((own / "dev.json").read_text())
    for dialogue, original in zip(spoken, given, strict=True):
        assert [(t["speaker"], t["text"]) for t in dialogue] == [(t["speaker"], t["text"]) for t in original]


@pytest.mark.parametrize(
    ("dataset", "read"),
    [
        ("MELD", ("Ses01F Bee", "It's [LAUGHTER]  so")),
        ("EmoryNLP", ("Ses01F", "It's [LAUGHTER]  so")),
        ("IEMOCAP", ("Robin", "It's so")),
        ("own", ("Ses01F Bee", "\u201cIt\u2019s [LAUGHTER]  so\u201d")),
    ],
)
def test_the_model_gets_the_text_as_in_training_and_the_user_as_in_the_file(
    run, tmp_path, monkeypatch, capsys, dataset, read
):
    shutil.copytree(run, tmp_path / "run")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"dataset": dataset}))
    turn = {"speaker": "Ses01F Bee", "text": "\u201cIt\u2019s [LAUGHTER]  so\u201d"}
    (tmp_path / "new.json").write_text(json.dumps([[turn]]))
    seen = []
    monkeypatch.setattr(erc_predict, "lay_out", lambda talks, *rest: seen.extend(talks) or lay_out(talks, *rest))
    assert erc_predict.main([str(tmp_path / "run"), str(tmp_path / "new.json")]) == 0
    assert [(turn.speaker, turn.text) for dialogue in seen for turn in dialogue.turns] == [read]
    (((spoken,),)) = json.loads(capsys.readouterr().out)
    assert {**spoken, "label": None} == {**turn, "label": None} and spoken["label"] in erc_tiny.LABELS


def test_what_cannot_be_used_is_one_line_and_exit_code_2(run, own, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    dialogues = tmp_path / "new.json"
    dialogues.write_text("[[]]")

    def error(folder):
        assert erc_predict.main([str(folder), str(dialogues)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    remedy = "train it to its end with --resume, or name another folder"
    assert error(tmp_path) == f"error: {tmp_path} is not the folder of a finished run: {remedy}"
    assert error(run) == f"error: {dialogues}: expected dialogues; received none"
    dialogues.unlink()
    assert f"{dialogues}: not readable as JSON" in error(run)
    dialogues.write_bytes((own / "dev.json").read_bytes())
    (tmp_path / "run" / "reference.safetensors").write_bytes(b"broken off")
    assert "reference.safetensors is no file of a finished run of this version" in error(tmp_path / "run")
    result, remedy = tmp_path / "run" / "result.json", "train again in another folder, or with --overwrite"
    stored = json.loads(result.read_text())
    del stored["test"]["prototype"]  # of a version that had fewer heads
    for content in (json.dumps(stored), "{", "[]", "{}"):
        result.write_text(content)
        line = error(tmp_path / "run")
        assert line.startswith(f"error: {result} holds no result of this version (") and line.endswith(remedy)
    result.unlink()
    result.mkdir()
    assert str(result) in error(tmp_path / "run")  # an OSError
