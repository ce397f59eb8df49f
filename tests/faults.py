"""Random damage to checkpoints and to dataset files: each is read as before, or refused by an error that says so.

    python tests/faults.py --cases 2000                       # what `make faults` runs
    python tests/faults.py --only 123                         # one case again

A case is a function of the seed and its number.
"""

import argparse
import io
import json
import pickle
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from erc.data import READERS, SOURCES, read_dialogues
from erc.files import InputError
from erc.folder import FORMAT, read_checkpoint
from support.same import same

STATE = {
    "format": FORMAT,
    "progress": {"epoch": 1, "losses": [0.5, 1.0], "history": [{"updates": 3}]},
    "memory": {"queue": torch.arange(24.0).view(2, 3, 4), "cursors": torch.tensor([3, 1])},
    "random": [{"cpu": torch.Generator().manual_seed(0).get_state()}],
}
MELD = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n" + "".join(
    f'"one, {i}",Ann,{SOURCES["MELD"].labels[i % 7]},{i // 3},{i % 3}\n' for i in range(9)
)
TURN = {"text": "one two", "speaker": "Ses01F_impro01_M", "label": "neu"}
IEMOCAP = [[TURN, TURN | {"label": "sad"}], [TURN]]
SCENE = {
    "scene_id": "s01_e01_c01",
    "utterances": [{"utterance_id": "u", "speakers": ["Ann Lee"], "transcript": "one", "emotion": "Neutral"}] * 2,
}
EMORYNLP = {"episodes": [{"scenes": [SCENE, SCENE | {"scene_id": "s01_e01_c02"}]}]}
SPOILERS = (None, True, -1, 2.5, 10**400, "", "\0", "9" * 5000, "²", [], {}, [[]], {"label": 1}, "neutral", "\ud800")


def saved(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


CONTENTS = {
    "checkpoint": saved(STATE),
    "MELD": MELD.encode(),
    "IEMOCAP": json.dumps(IEMOCAP).encode(),
    "EmoryNLP": json.dumps(EMORYNLP).encode(),
    "own": json.dumps(IEMOCAP).encode(),
}


def foreign(draw) -> bytes:
    """Files of another kind."""
    return draw.choice([
        b"", b"\0" * 100, b"PK\3\4", b"hello\n", draw.randbytes(draw.randint(1, 200)), pickle.dumps(STATE["progress"]),
        saved([1, 2]), saved({"format": "spcl-erc 1"}), saved(torch.nn.Linear(1, 1)), saved(Path("x")),
        b"[" * 100_000, b'{"a":' * 100_000, b"\x80\x02" + draw.randbytes(50), "\ufeff[]".encode("utf-16"),
    ])  # fmt: skip


def damaged(content: bytes, draw) -> bytes:
    """The content with random bytes changed, lost, repeated or added."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 4, 64))
        part = bytes(data[at : at + length])
        flipped = bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] if part else b""
        data[at : at + length] = draw.choice(
            (flipped, b"", part + part, draw.randbytes(length) + part, bytes(len(part)))
        )
        if draw.random() < 0.15:
            del data[at:]
    return bytes(data)


def respelt(content: bytes, draw) -> bytes:
    """The JSON with one of its values replaced by another, or removed."""
    tree = node = json.loads(content)
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.2:
            break
        node = node[key]
    if draw.random() < 0.3:
        del node[key]
    else:
        node[key] = draw.choice(SPOILERS)
    return json.dumps(tree).encode()


def read(kind: str, path: Path):
    if kind == "checkpoint":
        return read_checkpoint(path)
    return read_dialogues(path, ("neu", "sad")) if kind == "own" else READERS[kind](path)


def check(seed: int, number: int, folder: Path) -> tuple[str, str]:
    """(kind of file, "read", "refused", or what went wrong) of one case."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(list(CONTENTS))
    how = draw.choice(("damaged", "damaged", "damaged", "foreign", "respelt"))
    if how == "respelt" and kind in ("IEMOCAP", "EmoryNLP", "own"):
        content = respelt(CONTENTS[kind], draw)
    else:
        content = foreign(draw) if how == "foreign" else damaged(CONTENTS[kind], draw)
    path = folder / "file"
    path.write_bytes(content)
    try:
        found = read(kind, path)
    except InputError as error:
        return kind, "refused" if str(path) in str(error) else f"refused without the file's name: {error}"
    except Exception as error:
        return kind, f"{how}, {type(error).__name__}: {error}"[:300]
    if kind == "checkpoint" and not same(found, STATE):
        return kind, f"{how}, read with other values"
    return kind, "read"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Damages checkpoints and dataset files, and reads them.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    args = parser.parse_args(arguments)
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.cases) if args.only is None else [args.only]:
            kind, outcome = check(args.seed, number, Path(folder))
            if outcome not in ("read", "refused"):
                command = f"python tests/faults.py --seed {args.seed} --only {number}"
                print(f"FAILED {command}\n  {kind}, {outcome}", flush=True)
                outcome = "failed"
            counts[kind, outcome] += 1
    for kind in CONTENTS:
        print(
            f"{kind}: " + ", ".join(f"{counts[kind, outcome]} {outcome}" for outcome in ("read", "refused", "failed"))
        )
    return int(any(outcome == "failed" for _, outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
