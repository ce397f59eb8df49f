"""The datasets' files: reading them, finding them, fetching them."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest

from erc import data, files
from erc.data import SOURCES, Corpus, Dialogue, Turn, load_corpus, plain_text
from erc.files import InputError, NoDataError

MELD = SOURCES["MELD"]
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
ROWS = '1,"Hello, you",Ann,neutral,neutral,0,0\n2,Hi.,Ben,Joy,positive,0,2\n3,Go!,Ann,anger,negative,7,0\n'


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "train_sent_emo.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_become_dialogues(tmp_path):
    first, second = data.read_meld(write(tmp_path, HEADER + ROWS))
    assert first.turns == (Turn("0", "Ann", "Hello, you", 0), Turn("2", "Ben", "Hi.", 1))
    assert (second.id, len(second.turns)) == ("7", 1)


def test_turns_follow_their_numbers_not_their_lines_beside_a_byte_order_mark_and_blank_lines(tmp_path):
    rows = "1,b,Ann,joy,positive,0,5\n\n2,a,Ann,joy,positive,0,3\n\n"
    (dialogue,) = data.read_meld(write(tmp_path, b"\xef\xbb\xbf" + (HEADER + rows).encode()))
    assert [turn.text for turn in dialogue.turns] == ["a", "b"]


def test_quotes_become_plain_and_windows_1252_punctuation_is_mended(tmp_path):
    # a tokenizer drops control characters: "We're" would become "were"
    rows = ROWS.replace("Hi.", "We\x92re \x93here\x94 \x96 now\x85").replace("Ben", "B\x8an")
    first, _ = data.read_meld(write(tmp_path, HEADER + rows))
    assert (first.turns[1].speaker, first.turns[1].text) == ("B\u0160n", "We're here \u2013 now\u2026")
    assert plain_text("a\x81b") == "ab"  # not a character of Windows-1252
    assert plain_text(' \u201cIt\u2019s \u2018so\u2019 "good"\u201d ') == "It's 'so' good"


def use(monkeypatch, **changes):
    """Changes what is known of MELD's files."""
    for name, value in changes.items():
        monkeypatch.setitem(MELD.__dict__, name, value)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in MELD.files:
        (folder / name).write_text(HEADER + ROWS, encoding="utf-8")
    return folder


def test_places_are_searched_in_order(nowhere, monkeypatch):
    cache = fill(nowhere / "cache" / "spcl-loss" / "meld")
    assert files.locate(MELD) == cache
    shared = fill(nowhere / "shared" / "meld")
    monkeypatch.setenv("SPCL_DATA_DIR", str(shared.parent))
    assert files.locate(MELD) == shared
    own = fill(nowhere / "own")
    assert files.locate(MELD, own) == own
    assert data.load_corpus("MELD", own).name == "MELD"


def test_files_that_are_not_the_published_ones_are_used_with_a_warning(nowhere, capsys):
    own = fill(nowhere / "own")
    assert len(load_corpus("MELD", own).train) == 2
    warning = capsys.readouterr().err
    assert warning.startswith("warning: not the published version of MELD: train_sent_emo.csv, dev_sent_emo.csv, test")
    assert (warning.count("\n"), str(own) in warning) == (1, True)


def test_a_named_folder_must_hold_the_files(nowhere):
    fill(nowhere / "cache" / "spcl-loss" / "meld")
    (nowhere / "empty").mkdir()
    with pytest.raises(NoDataError, match=r"empty lacks train_sent_emo\.csv"):
        files.locate(MELD, nowhere / "empty")


def test_without_data_and_network_one_sentence_says_what_to_do(nowhere):
    with pytest.raises(NoDataError) as caught:
        files.locate(MELD)
    message = str(caught.value)
    address = "github.com/declare-lab/MELD"
    for part in ("train_sent_emo.csv", address, str(nowhere / "cache"), "--data-dir", "--practice"):
        assert part in message
    assert "\n" not in message
    assert list((nowhere / "cache").rglob("*.*csv*")) == []


def test_unknown_corpus_is_named():
    with pytest.raises(InputError, match="received 'DailyDialog'"):
        data.load_corpus("DailyDialog")


def test_download_fills_the_cache(nowhere, monkeypatch, server):
    folder, url = server
    for name in MELD.files:
        (folder / name).write_text(HEADER + ROWS + f"4,{name},Ann,fear,negative,8,0\n", encoding="utf-8")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MELD.files}
    use(monkeypatch, files=sums, url=url)
    assert files.locate(MELD) == nowhere / "cache" / "spcl-loss" / "meld"
    assert len(load_corpus("MELD").train) == 3
    use(monkeypatch, url="http://127.0.0.1:9")
    assert len(load_corpus("MELD").test) == 3  # from the cache


def test_a_wrong_checksum_leaves_no_file(nowhere, monkeypatch, server):
    folder, url = server
    fill(folder / "x")
    use(monkeypatch, url=f"{url}/x")
    with pytest.raises(NoDataError, match="has the checksum"):
        files.locate(MELD)
    assert [path for path in (nowhere / "cache").rglob("*") if path.is_file()] == []


def test_a_short_checksum_is_a_git_object_id():
    # git's own documentation of object ids hashes this line
    assert files.checksum(b"what is up, doc?", "0" * 40) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert files.checksum(b"", "0" * 64) == hashlib.sha256(b"").hexdigest()


def utterance(name: str, emotion: str, *speakers: str) -> dict[str, object]:
    return {"utterance_id": name, "speakers": speakers, "transcript": 'It\u2019s "me".', "emotion": emotion}


def scenes(*pairs):
    """EmoryNLP's file of scenes, each given by its name and utterances."""
    return {"episodes": [{"scenes": [{"scene_id": name, "utterances": utterances}]} for name, utterances in pairs]}


def test_emorynlp_scenes_become_dialogues(tmp_path):
    joyful, mad = utterance("u1", "Joyful", "Ann Bee"), utterance("u3", "Mad", "#ALL#")
    content = scenes(("c1", [joyful, mad]), ("c2", [utterance("u", "Sad")]))
    (tmp_path / "x.json").write_text(json.dumps(content))
    first, second = data.read_emorynlp(tmp_path / "x.json")
    assert first.turns == (Turn("u1", "Ann", "It's me.", 1), Turn("u3", "All", "It's me.", 3))
    assert (first.id, second.id) == ("c1", "c2")


@pytest.mark.parametrize(
    ("speakers", "name"),
    [
        (["Carol Willick", "Susan Bunch"], "Carol and Susan"),
        (["Mr. Geller"], "Mr. Geller"),
        (["Jean-Claude Van Damme"], "Jean-Claude Van Damme"),
        (["Ryan"], "Ryan"),
        (["#OTHER#"], "Other"),
        ([], "Somebody"),
    ],
)
def test_speakers_go_by_first_names(speakers, name):
    assert data.speaker_name(speakers) == name


def test_iemocap_keeps_unlabelled_turns_and_hides_who_speaks(tmp_path):
    turns = [
        {"text": "Well [LAUGHTER]-  yes.", "speaker": "Ses05F_impro01_M"},
        {"text": "[BREATHING]", "speaker": "Ses05F_impro01_F", "label": "exc"},
        {"text": "No.", "speaker": "Ses05F_impro01_M", "label": "neu"},
    ]
    (tmp_path / "x.json").write_text(json.dumps([turns]))
    (dialogue,) = data.read_iemocap(tmp_path / "x.json")
    one, other = data.NEUTRAL_NAMES[:2]
    said = [(one, "Well - yes.", None), (other, "", 4), (one, "No.", 0)]
    assert [(turn.speaker, turn.text, turn.label) for turn in dialogue.turns] == said


FAULTS = {
    data.read_meld: [
        (HEADER.replace("Emotion,", "") + ROWS, "line 1: expected a column Emotion; received Sr No., Utterance, Speak"),
        (HEADER + ROWS.replace("Joy", "hope"), "line 3, Emotion: expected one of neutral, joy, surprise, anger, sad"),
        (HEADER + ROWS.replace("Joy", "hope"), "; received 'hope'"),
        (HEADER + ROWS.replace(",0,2\n", ",zero,2\n"), "line 3, Dialogue_ID: expected a whole number; received 'zero'"),
        (HEADER + ROWS.replace(",0,2\n", ",0,0\n"), "expected each turn once; received turn 0 of dialogue 0 twice"),
        (HEADER + ROWS.replace(",0,2\n", "\n"), "line 3: expected 7 fields, as in line 1; received 5"),
        (HEADER + ROWS.replace("Hi.", "Hi, there"), "line 3: expected 7 fields, as in line 1; received 8"),
        ((HEADER + ROWS).encode().replace(b"Hi.", b"caf\xe9"), "line 3: expected UTF-8"),
        (b"\xef\xbb\xbf" + (HEADER + ROWS).encode().replace(b"Ben", b"B\xe9n"), "line 3: expected UTF-8"),
        (HEADER + ROWS.replace('"Hello, you"', '"Hello" you'), "line 2: not readable as CSV"),
        (HEADER + ROWS.replace("Hello, you", "Hello,\nyou").replace("Joy", "hope"), "line 4, Emotion"),
        (HEADER, "expected dialogues; received none"),
        (HEADER + "\n", "expected dialogues; received none"),
        (HEADER + ROWS.replace("Hi.", "H\0."), "line 3"),  # Python 3.10's reader already refuses it
        (HEADER.replace("Emotion", "Emo\0tion") + ROWS, "line 1"),
        ("", "line 1: expected a column Utterance; received none"),
    ],
    data.read_emorynlp: [
        ([], "x.json: expected an object with episodes; received []"),
        ({}, "x.json, episodes: expected a list; received null, or the key is missing"),
        ({"episodes": 3}, "x.json, episodes: expected a list; received 3"),
        (scenes((1, [])), "x.json, episodes[0], scenes[0], scene_id: expected text; received 1"),
        (
            scenes(("c", [utterance("u", "Hope", "A")])),
            "episodes[0], scenes[0], utterances[0], emotion: expected one of neutral, joyful, scared, mad, peaceful, ",
        ),
        (
            scenes(("c", [utterance("u", "Sad")]), ("c", [utterance("v", "Mad")])),
            "expected each dialogue once; received dialogue c 2 times",
        ),
        ({"episodes": []}, "expected dialogues; received none"),
        (scenes(("c", [])), "expected dialogues; received none"),
        (b'{"episodes": [', "x.json: not readable as JSON"),
    ],
    data.read_iemocap: [
        ([], "expected dialogues; received none"),
        ([[]], "expected dialogues; received none"),
        ([[{"text": "a\0b", "speaker": "b"}]], r"[0][0], text: expected text without NUL bytes; received 'a\x00b'"),
        (
            [[{"text": "a", "speaker": "b", "label": "dis"}]],
            "[0][0], label: expected one of neu, fru, sad, ang, exc, hap (leave the label of any other emotion out); "
            "received 'dis'",
        ),
        ([[{"text": "a"}]], "[0][0], speaker: expected text; received null, or the key is missing"),
        ([[{"text": "a", "speaker": str(i)} for i in range(11)]], "[0]: expected at most 10 speakers; received 11"),
    ],
}


@pytest.mark.parametrize(
    ("read", "content", "place"), [(read, *case) for read, cases in FAULTS.items() for case in cases]
)
def test_a_fault_is_named_by_file_and_place(tmp_path, read, content, place):
    path = tmp_path / ("x.csv" if read is data.read_meld else "x.json")
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert place in str(caught.value)


def test_without_iemocap_the_error_says_how_to_obtain_it(nowhere):
    with pytest.raises(NoDataError) as caught:
        data.load_corpus("IEMOCAP")
    for part in ("licence", "sail.usc.edu", "train_data.json", "--data-dir", str(nowhere / "cache")):
        assert part in str(caught.value)


def test_sizes_are_counted():
    dialogue = Dialogue("0", (Turn("0", "Ann", "Hi.", 1), Turn("1", "Ben", "Oh.", None)))
    corpus = Corpus("MELD", MELD.labels, (dialogue, dialogue), (dialogue,), ())
    head = "|       | dialogues | turns | labelled | neutral | joy | surprise |"
    assert data.split_table(corpus).startswith(head)
    assert [line.replace("|", " ").split()[:6] for line in data.split_table(corpus).splitlines()[2:]] == [
        ["train", "2", "4", "2", "0", "2"],
        ["dev", "1", "2", "1", "0", "1"],
        ["test", "0", "0", "0", "0", "0"],
    ]


@pytest.mark.parametrize("name", ["MELD", "EmoryNLP", "IEMOCAP"])
def test_the_dataset_itself_has_the_published_sizes(name):
    folder = Path(os.environ.get("SPCL_DATA_DIR", "/nonexistent")) / name.lower()
    if not folder.is_dir():
        pytest.skip(f"SPCL_DATA_DIR names no folder with {name}")
    corpus = data.load_corpus(name)
    assert corpus.name == name
    rows = [line.replace("|", " ").split() for line in data.split_table(corpus).splitlines()[2:]]
    for (split, (dialogues, turns, classes)), row in zip(SOURCES[name].published.items(), rows, strict=True):
        assert row == [split, *map(str, (dialogues, turns, sum(classes), *classes))]
    turns = [turn for split in (corpus.train, corpus.dev, corpus.test) for dialogue in split for turn in dialogue.turns]
    assert not any(quote in turn.text for turn in turns for quote in '\u2018\u2019\u201c\u201d"')
    assert not any("Ses0" in turn.speaker or "[" in turn.text for turn in turns if name == "IEMOCAP")


def test_a_fraction_of_the_training_dialogues_lies_inside_every_larger_one_of_the_same_seed():
    dialogues = tuple(Dialogue(str(i), (Turn("0", "Ann", "Hi.", 0),)) for i in range(200))
    corpus = Corpus("MELD", MELD.labels, dialogues, dialogues[:3], dialogues[:2])

    def names(fraction, seed):
        part = corpus.part(fraction, seed)
        assert (part.dev, part.test) == (corpus.dev, corpus.test)
        return [dialogue.id for dialogue in part.train]

    shares = [names(fraction, seed=1) for fraction in (0.001, 0.05, 0.1, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 10, 20, 100, 200]
    for smaller, larger in itertools.pairwise(shares):
        assert set(smaller) < set(larger)
        assert smaller == sorted(smaller, key=int)
    assert names(0.1, seed=1) == shares[2] != names(0.1, seed=2)
