"""The look at a curriculum: what it writes for a finished run, what its table and its shares say."""

import sys

import pytest
import torch

import curriculum_figure
import erc_tiny
from erc.run_folder import RunFolder
from erc.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure")
    settings = erc_tiny.settings(erc_tiny.encoder(folder / "encoder"))
    train(settings, erc_tiny.corpus(), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("options", [[], ["--no-text"]])
def test_a_finished_run_gets_figure_and_table(run, tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(curriculum_figure, "load_corpus", lambda name, data_dir: erc_tiny.corpus())
    monkeypatch.setattr(sys, "argv", ["", str(run), "--output", str(tmp_path), "--rows", "3", *options])
    assert curriculum_figure.main() == 0
    assert (tmp_path / "curriculum.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "curriculum.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out
    assert len(text.splitlines()) == 2 + 3 + 3
    assert any(words in text for words in erc_tiny.WORDS) == (not options)


def test_the_table_goes_from_the_easiest_to_the_hardest():
    corpus = erc_tiny.corpus(train=2)
    difficulty = torch.tensor([0.5, 0.1, 0.8, 0.3, 0.2, 0.9, 0.4, 0.6])  # two dialogues of four turns
    lines = curriculum_figure.table(difficulty, corpus, 2, quote=False).splitlines()[2:]
    turn = corpus.train[0].turns[1]
    assert lines[0] == f"| 0.100 | {corpus.labels[turn.label]} | {corpus.train[0].id}, {turn.id} |"
    assert [float(line.split("|")[1]) for line in lines] == pytest.approx([0.1, 0.2, 0.8, 0.9])


def test_what_epochs_keep_is_what_the_training_would(run):
    settings = RunFolder(run).stored_settings()
    kept = curriculum_figure.kept_by_epoch(torch.rand(48), settings)
    assert kept.shape == (3, 48)
    assert (kept.sum(1) == 24).all()


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
    assert curriculum_figure.main() == 2
    assert "no finished run" in capsys.readouterr().err
