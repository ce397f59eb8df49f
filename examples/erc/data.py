"""The corpora by name, and their sizes beside the published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .dialogues import Corpus, InputError
from .emorynlp import NAME as EMORYNLP
from .emorynlp import REDUCED_NAME as EMORYNLP_REDUCED
from .emorynlp import load_emorynlp
from .iemocap import NAME as IEMOCAP
from .iemocap import load_iemocap
from .meld import load_meld
from .practice import PRACTICE, practice_corpus
from .sources import NoDataError

__all__ = [
    "DATASETS", "EMORYNLP", "EMORYNLP_REDUCED", "IEMOCAP", "NoDataError", "departures", "load_corpus", "split_table",
]  # fmt: skip

DATASETS: dict[str, Callable[[str | Path | None], Corpus]] = {
    "MELD": load_meld, IEMOCAP: load_iemocap, EMORYNLP: load_emorynlp, EMORYNLP_REDUCED: load_emorynlp,
}  # fmt: skip

# Of each split: dialogues, turns, labelled turns by class in the order of the corpus's labels. MELD and EmoryNLP: the
# READMEs of their repositories (MELD's counts 1039 training dialogues, of which number 60 is in none of its files),
# the reduced EmoryNLP by counting its files. IEMOCAP: the text release of the SPCL authors, by counting; papers that
# quote 5810 and 1623 utterances use other versions of the transcripts.
PUBLISHED: dict[str, dict[str, tuple[int, int, tuple[int, ...]]]] = {
    "MELD": {
        "train": (1038, 9989, (4710, 1743, 1205, 1109, 683, 271, 268)),
        "dev": (114, 1109, (470, 163, 150, 153, 111, 22, 40)),
        "test": (280, 2610, (1256, 402, 281, 345, 208, 68, 50)),
    },
    EMORYNLP: {
        "train": (713, 9934, (3034, 2184, 1285, 1076, 900, 784, 671)),
        "dev": (99, 1344, (393, 289, 178, 143, 132, 134, 75)),
        "test": (85, 1328, (349, 282, 182, 113, 159, 145, 98)),
    },
    EMORYNLP_REDUCED: {
        "train": (659, 7551, (2485, 1677, 941, 785, 638, 551, 474)),
        "dev": (89, 954, (322, 205, 127, 97, 82, 70, 51)),
        "test": (79, 984, (288, 217, 116, 86, 111, 96, 70)),
    },
    IEMOCAP: {
        "train": (100, 6490, (1167, 1149, 739, 711, 620, 392)),
        "dev": (20, 1401, (157, 319, 100, 222, 122, 60)),
        "test": (31, 2196, (384, 381, 245, 170, 299, 143)),
    },
}


def load_corpus(name: str, data_dir: str | Path | None = None) -> Corpus:
    """A corpus by its name; `data_dir` as in its loader."""
    if name == PRACTICE:
        return practice_corpus()
    if name not in DATASETS:
        raise InputError(f"the corpus must be one of {', '.join([*DATASETS, PRACTICE])}; received {name!r}")
    return DATASETS[name](data_dir)


def counts(corpus: Corpus, split: str) -> tuple[int, int, tuple[int, ...]]:
    """Dialogues, turns, labelled turns by class."""
    dialogues = getattr(corpus, split)
    labels = Counter(turn.label for dialogue in dialogues for turn in dialogue.turns)
    return len(dialogues), sum(labels.values()), tuple(labels[label] for label in range(len(corpus.labels)))


def split_table(corpus: Corpus) -> str:
    """The sizes of the splits as a table of text."""
    rows = [("", "dialogues", "turns", "labelled", *corpus.labels)]
    for split in ("train", "dev", "test"):
        dialogues, turns, classes = counts(corpus, split)
        rows.append((split, *(str(number) for number in (dialogues, turns, sum(classes), *classes))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def departures(corpus: Corpus) -> list[str]:
    """In what the splits differ from the published ones; nothing where none are published."""
    found = []
    for split, published in PUBLISHED.get(corpus.name, {}).items():
        what = ("dialogues", "turns", *(f"{label} turns" for label in corpus.labels))
        (*sizes, classes), (*other_sizes, other_classes) = counts(corpus, split), published
        for name, one, other in zip(what, (*sizes, *classes), (*other_sizes, *other_classes), strict=True):
            if one != other:
                found.append(f"{split} has {one} {name}, published {other}")
    return found
