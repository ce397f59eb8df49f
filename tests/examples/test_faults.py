"""200 of the damaged files of `make faults`, and that the undamaged ones are read."""

import json

import pytest

import faults


@pytest.mark.parametrize("kind", faults.CONTENTS)
def test_undamaged_files_are_read(kind, tmp_path):
    (tmp_path / "file").write_bytes(faults.CONTENTS[kind])
    found = faults.read(kind, tmp_path / "file")
    assert faults.same(found, faults.STATE) if kind == "checkpoint" else len(found) >= 2


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
    with pytest.raises(
        faults.InputError,
        match=rf"train\.json\[0\]\[0\], {part}: expected text that UTF-8 can hold; received '\\ud800'",
    ):
        faults.read("own", tmp_path / "train.json")


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text(faults.MELD.replace(",0,0", f",0,{'9' * 5000}"))
    with pytest.raises(faults.InputError, match="line 2, Utterance_ID: expected a whole number"):
        faults.read("MELD", tmp_path / "x.csv")
