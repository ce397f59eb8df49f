"""MELD's files: reading them, finding them, fetching them."""

import hashlib
import http.server
import os
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from erc import data
from erc.dialogues import InputError

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
ROWS = '1,"Hello, you",Ann,neutral,neutral,0,0\n2,Hi.,Ben,Joy,positive,0,2\n3,Go!,Ann,anger,negative,7,0\n'


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "train_sent_emo.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_become_dialogues(tmp_path):
    first, second = data.read_meld_csv(write(tmp_path, HEADER + ROWS))
    assert [(turn.id, turn.speaker, turn.text, turn.label) for turn in first.turns] == [
        ("0", "Ann", "Hello, you", 0),
        ("2", "Ben", "Hi.", 1),
    ]
    assert (second.id, len(second.turns)) == ("7", 1)


def test_turns_follow_their_numbers_not_their_lines(tmp_path):
    rows = "1,b,Ann,joy,positive,0,5\n2,a,Ann,joy,positive,0,3\n"
    (dialogue,) = data.read_meld_csv(write(tmp_path, HEADER + rows))
    assert [turn.text for turn in dialogue.turns] == ["a", "b"]


def test_byte_order_mark_and_blank_lines_are_no_fault(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + (HEADER + ROWS + "\n").encode())
    assert len(data.read_meld_csv(path)) == 2


def test_quotes_become_plain():
    assert data.plain_quotes(' \u201cIt\u2019s \u2018so\u2019 "good"\u201d ') == "It's 'so' good"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (HEADER.replace("Emotion,", "") + ROWS, "line 1, column Emotion"),
        (HEADER + ROWS.replace("Joy", "hope"), "line 3, column Emotion: 'hope'"),
        (HEADER + ROWS.replace(",0,2\n", ",zero,2\n"), "line 3, column Dialogue_ID: 'zero'"),
        (HEADER + ROWS.replace(",0,2\n", ",0,0\n"), "line 3, column Utterance_ID: 0 occurs twice"),
        (HEADER + ROWS.replace(",0,2\n", "\n"), "line 3, column Dialogue_ID: the row has 5 fields"),
        (HEADER + ROWS.replace("Hi.", "Hi, there"), "line 3, column 8"),
        ((HEADER + ROWS).encode().replace(b"Hi.", b"caf\xe9"), "line 3, column Utterance: not UTF-8"),
        ((HEADER + ROWS).encode().replace(b"Ben", b"B\xe9n"), "line 3, column Speaker: not UTF-8"),
        (HEADER + ROWS.replace('"Hello, you"', '"Hello" you'), "line 2"),
        (HEADER + ROWS.replace("Hello, you", "Hello,\nyou").replace("Joy", "hope"), "line 4, column Emotion"),
        (HEADER, "no utterances"),
        ("", "no utterances"),
    ],
)
def test_a_fault_is_named_by_file_line_and_column(tmp_path, content, place):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        data.read_meld_csv(path)
    assert str(path) in str(caught.value)
    assert place in str(caught.value)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data on this machine, and a closed port instead of the internet."""
    monkeypatch.delenv("SPCL_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "MELD_URL", "http://127.0.0.1:9")
    return tmp_path


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in data.MELD_SHA256:
        (folder / name).write_text(HEADER + ROWS, encoding="utf-8")
    return folder


def test_places_are_searched_in_order(nowhere, monkeypatch):
    cache = fill(nowhere / "cache" / "spcl-loss" / "meld")
    assert data.find_meld() == cache
    shared = fill(nowhere / "shared" / "meld")
    monkeypatch.setenv("SPCL_DATA_DIR", str(shared.parent))
    assert data.find_meld() == shared
    own = fill(nowhere / "own")
    assert data.find_meld(own) == own
    assert data.load_corpus("MELD", own).name == "MELD"


def test_a_named_folder_must_hold_the_files(nowhere):
    fill(nowhere / "cache" / "spcl-loss" / "meld")
    (nowhere / "empty").mkdir()
    with pytest.raises(data.NoDataError, match=r"empty lacks train_sent_emo\.csv"):
        data.find_meld(nowhere / "empty")


def test_without_data_and_network_one_sentence_says_what_to_do(nowhere):
    with pytest.raises(data.NoDataError) as caught:
        data.find_meld()
    message = str(caught.value)
    for part in (
        "train_sent_emo.csv",
        "github.com/declare-lab/MELD",
        str(nowhere / "cache"),
        "--data-dir",
        "--practice",
    ):
        assert part in message
    assert "\n" not in message
    assert list((nowhere / "cache").rglob("*.*csv*")) == []


def test_unknown_corpus_is_named():
    with pytest.raises(InputError, match="received 'DailyDialog'"):
        data.load_corpus("DailyDialog")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves the files of tmp_path/served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_download_fills_the_cache(nowhere, monkeypatch, server):
    folder, url = server
    for name in data.MELD_SHA256:
        (folder / name).write_text(HEADER + ROWS + f"4,{name},Ann,fear,negative,8,0\n", encoding="utf-8")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data.MELD_SHA256}
    monkeypatch.setattr(data, "MELD_SHA256", sums)
    monkeypatch.setattr(data, "MELD_URL", url)
    assert data.find_meld() == nowhere / "cache" / "spcl-loss" / "meld"
    assert len(data.load_meld().train) == 3
    monkeypatch.setattr(data, "MELD_URL", "http://127.0.0.1:9")
    assert len(data.load_meld().test) == 3  # from the cache


def test_a_wrong_checksum_leaves_no_file(nowhere, monkeypatch, server):
    folder, url = server
    fill(folder / "x")
    monkeypatch.setattr(data, "MELD_URL", f"{url}/x")
    with pytest.raises(data.NoDataError, match="has sha256"):
        data.find_meld()
    assert [path for path in (nowhere / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(
    not (Path(os.environ.get("SPCL_DATA_DIR", "/nonexistent")) / "meld").is_dir(),
    reason="SPCL_DATA_DIR names no folder with MELD",
)
def test_meld_itself():
    meld = data.load_meld()
    assert [len(split) for split in (meld.train, meld.dev, meld.test)] == [1038, 114, 280]
    turns = [turn for dialogue in meld.train for turn in dialogue.turns]
    assert len(turns) == 9989
    assert sum(len(dialogue.turns) for dialogue in meld.test) == 2610
    counts = Counter(meld.labels[turn.label] for turn in turns)
    assert counts == {
        "neutral": 4710, "joy": 1743, "surprise": 1205, "anger": 1109, "sadness": 683, "disgust": 271, "fear": 268,
    }  # fmt: skip
    assert "60" not in {dialogue.id for dialogue in meld.train}
    assert not any(quote in turn.text for turn in turns for quote in '\u2018\u2019\u201c\u201d"')
