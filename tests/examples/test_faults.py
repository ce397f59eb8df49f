"""Damaged files, full disks, bad downloads, and a few of the accidents of `make faults`."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest

import faults
from erc import files
from erc.folder import RunFolder, atomically
from support.same import same


@pytest.mark.parametrize("kind", faults.CONTENTS)
def test_undamaged_files_are_read(kind, tmp_path):
    (tmp_path / "file").write_bytes(faults.CONTENTS[kind])
    found = faults.read(kind, tmp_path / "file")
    assert same(found, faults.STATE) if kind == "checkpoint" else len(found) >= 2


@pytest.mark.filterwarnings("ignore")  # of PyTorch and NumPy, on files that are none of theirs
def test_damaged_files_are_refused_or_read_as_before(tmp_path):
    outcomes = [faults.check(0, number, tmp_path) for number in range(200)]
    assert [(n, *pair) for n, pair in enumerate(outcomes) if pair[1] not in ("read", "refused")] == []
    assert sum(outcome == "refused" for _, outcome in outcomes) > 100


def test_one_changed_bit_in_a_tensor_is_noticed(tmp_path):
    content = bytearray(faults.CONTENTS["checkpoint"])
    place = content.index(faults.STATE["memory"]["queue"].numpy().tobytes())
    content[place] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(faults.InputError, match="no whole checkpoint"):
        faults.read_checkpoint(tmp_path / "file")


def test_json_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "train.json").write_bytes(b"[" * 100_000)
    with pytest.raises(faults.InputError, match=r"train\.json: not readable as JSON"):
        faults.read("own", tmp_path / "train.json")


@pytest.mark.parametrize("part", ["text", "speaker", "label"])
def test_text_that_no_file_can_hold_is_refused_before_training(part, tmp_path):
    turn = {"text": "one", "speaker": "Ann", "label": "neu"} | {part: "\ud800"}
    (tmp_path / "train.json").write_text(json.dumps([[turn]]))
    message = rf"train\.json\[0\]\[0\], {part}: expected text that UTF-8 can hold; received '\\ud800'"
    with pytest.raises(faults.InputError, match=message):
        faults.read("own", tmp_path / "train.json")


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text(faults.MELD.replace(",0,0", f",0,{'9' * 5000}"))
    with pytest.raises(faults.InputError, match="line 2, Utterance_ID: expected a whole number"):
        faults.read("MELD", tmp_path / "x.csv")


def test_two_runs_cannot_share_a_folder(tmp_path):
    folder = tmp_path / "run"
    refused = pytest.raises(faults.InputError, match=r"run is in use: another process trains there\. Wait")
    with RunFolder(folder).locked(), refused, RunFolder(folder).locked():
        pass
    with RunFolder(folder).locked():
        pass


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("failed writing file")])
def test_a_full_disk_keeps_the_file_and_says_what_to_do(failure, tmp_path):
    (tmp_path / "checkpoint").write_text("old", encoding="utf-8")

    def write(partial):
        partial.write_text("ne", encoding="utf-8")
        raise failure

    with pytest.raises(faults.InputError, match=r"checkpoint cannot be written: .*(space|failed).*free\. Make room"):
        atomically(tmp_path / "checkpoint", write)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (tmp_path / "checkpoint").read_text(encoding="utf-8") == "old"
    with pytest.raises(faults.InputError, match=r"checkpoint cannot be written: .*MiB were free\. Make room"):
        atomically(tmp_path / "gone" / "checkpoint", write)


def test_two_processes_can_write_one_report_at_a_time(tmp_path, monkeypatch):
    report = tmp_path / "report.md"

    def write(partial):
        partial.write_text("first", encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            atomically(report, lambda other: other.write_text("second", encoding="utf-8"))

    atomically(report, write)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("report.md", "first")]


TEN = hashlib.sha256(b"0123456789").hexdigest()


@pytest.mark.parametrize(("how", "error"), [("cut", "IncompleteRead"), ("silent", "timed out")])
def test_a_download_that_is_cut_off_or_silent_is_an_error_and_leaves_no_file(how, error, server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPCL_DATA_DIR", raising=False)
    source = dataclasses.replace(faults.SOURCES["MELD"], files={how: TEN}, url=server[1])
    with pytest.raises(files.NoDataError, match=f"could not be downloaded .*{error}"):
        files.locate(source)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_slow_download_is_waited_for(server, tmp_path):
    files.download(f"{server[1]}/slow", tmp_path / "slow", TEN)
    assert (tmp_path / "slow").read_bytes() == b"0123456789"


@pytest.mark.skipif(sys.platform != "linux", reason="tests/accidents.py needs Linux")
def test_accidents_are_survived():
    """A few of those of `make faults`, in a process of its own, which forks."""
    import accidents

    command = [sys.executable, accidents.__file__, "--kills", "3", "--erc-kills", "2", "--tries", "1"]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert said.returncode == 0, said.stdout + said.stderr
    assert [line.split(":")[0] for line in said.stdout.splitlines()] == list(accidents.ACCIDENTS)
