"""Keeps scores and predictions of finished ERC runs, and compares arms on them.

    python benchmarks/erc_runs.py --add runs/reproduction/runs     # keeps the runs that are new there
    python benchmarks/erc_runs.py                                  # every arm against cross-entropy
    python benchmarks/erc_runs.py --least-seeds 2 --figure docs/figures/erc_differences.png
    python benchmarks/erc_runs.py --split test                     # on test, once all choices are made

A run on a share of the training dialogues is also scored on the rest of them: thousands of turns by which nothing was
chosen. Such runs are compared on the rest, the others on dev, unless --split says otherwise.

results/erc_runs.csv has a row for each run. results/erc_predictions.npz has a byte for each turn and head, so that the
paired bootstrap over dialogues and seeds can be made again, and with further seeds, without the run folders.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import measure
import numpy as np

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from erc.evaluate import Heads, bootstrap_f1, encode, interval, reference_samples, score  # noqa: E402
from erc.folder import atomically  # noqa: E402
from erc.settings import FORMER, HEADS, Settings  # noqa: E402

KEPT = ("linear", "prototype", "lda")  # heads whose predictions are kept
SPELT = ("objective", "contrastive_weight", "curriculum", "epochs")  # whether they are the defaults or not
SAME = ("dataset", "encoder", "train_fraction")  # arms are compared where these agree
SPLITS = ("dev", "test", "rest")
BEST = "best on dev"
ENCODERS = {Settings.encoder: "MiniLM", "all-mpnet-base-v2": "MPNet"}  # how tables and the figure call them
NOT_SCORED = 255  # in the rest: a turn that the run was trained on
Kept = dict[str, np.ndarray[Any, np.dtype[Any]]]


def options(settings: dict[str, Any]) -> str:
    """The command-line options of an arm: its loss and epochs, and what else differs from the defaults."""
    said, defaults = [], {setting.name: setting.default for setting in fields(Settings)} | FORMER
    for setting, value in settings.items():
        if setting in (*SAME, "seed") or (setting not in SPELT and value == defaults.get(setting)):
            continue
        name = setting.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{name}" if value else f"--no-{name}")
        else:
            said.append(f"--{name} {'none' if value is None else value}")
    return " ".join(said)


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others. Its encoder has no folders in front, so that it is the same from any folder."""
    where = {name: settings[name] for name in SAME} | {"encoder": Path(settings["encoder"]).name}
    return where | {"arm": options(settings), "seed": settings["seed"]}


def name_of(row: dict[str, Any]) -> str:
    """What no two runs share."""
    return "/".join(str(row[key]) for key in (*SAME, "arm", "seed"))


def read_run(folder: Path, settings: dict[str, Any], date: str, machine: str) -> tuple[dict[str, Any], Kept]:
    """A finished run: its row of the table, its predictions."""
    result = json.loads((folder / "result.json").read_text())
    environment, row = result["environment"], identity(settings)
    row |= {"train turns": result["train_samples"], "epochs": result["epochs"], "best epoch": result["best_epoch"]}
    row |= {"selected by": result["selected_by"]}
    classes = list(result["dev"]["lda"]["per_class_f1"])
    turns = {split: read_predictions(folder / "predictions.csv", split, classes) for split in ("dev", "test")}
    if settings["train_fraction"] < 1:
        result["rest"], turns["rest"] = score_rest(folder)
    for split, head, metric in itertools.product(SPLITS, HEADS, ("weighted-F1", "macro-F1")):
        scores = result[split][head] if split in result else {}
        row[f"{split} {head} {metric}"] = "" if not scores else round(scores[metric.replace("-", "_").lower()], 4)
    encoder = "" if settings["encoder"] == Settings.encoder else f"--encoder {settings['encoder']} "
    own = f"{encoder}--seed {settings['seed']} --train-fraction {settings['train_fraction']} {row['arm']}"
    row |= {
        "seconds": round(result["seconds"]),
        "commit": environment["commit"],
        "date": date,
        "machine": f"{machine}, {environment['threads']} thread, {result['precision']}, torch {environment['torch']}",
        "command": f"python examples/erc_{settings['dataset'].lower()}.py {own}",
    }
    owner = dict.fromkeys(("gold", "dialogue"), settings["dataset"])  # the runs of a dataset share them
    predictions = {
        f"{owner.get(key, name_of(row))}/{split}/{key}": kept for split in turns for key, kept in turns[split].items()
    }
    return row, predictions


def read_predictions(path: Path, split: str, classes: list[str]) -> Kept:
    """What a run wrote about a split: (n,) classes by head, true classes `gold`, and `dialogue`."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    of_turns = {key: np.array([classes.index(row[key]) for row in rows], np.uint8) for key in ("gold", *KEPT)}
    return {**of_turns, "dialogue": np.array([row["dialogue"] for row in rows])}


def score_rest(folder: Path) -> tuple[dict[str, Any], Kept]:
    """Scores by head of the training turns that the run did not draw; and the same arrays as of another split.

    The arrays cover all training turns. The prediction of a turn that the run was trained on is `NOT_SCORED`.
    """
    from erc.data import load_corpus
    from erc.inputs import lay_out
    from erc_predict import Classifier

    run = Classifier(folder)
    settings = run.settings
    corpus = load_corpus(settings.dataset).first(settings.limit)
    part = corpus.part(settings.train_fraction, settings.seed).train
    drawn = {dialogue.id for dialogue in part}
    labelled = [
        (dialogue.id, turn.label) for dialogue in corpus.train for turn in dialogue.turns if turn.label is not None
    ]
    kept: Kept = {"gold": np.array([label for _, label in labelled], np.uint8)}
    kept["dialogue"] = np.array([name for name, _ in labelled])
    left_out = ~np.isin(kept["dialogue"], list(drawn))
    rest = tuple(dialogue for dialogue in corpus.train if dialogue.id not in drawn)
    # reference.safetensors would hold the encoded training turns, but runs of earlier versions have none.
    learned, others = (lay_out(dialogues, run.tokenizer, settings).samples for dialogues in (part, rest))
    labels = [sample.label for sample in learned]
    fitted_on = [learned[i] for i in reference_samples(labels, settings.reference_turns, settings.seed)]
    train, left = (
        encode(run.model, samples, run.accelerator, settings.batch_size, what)
        for samples, what in ((fitted_on, "training turns"), (others, "the rest"))
    )
    counts = np.bincount(labels, minlength=len(corpus.labels))
    guesses = Heads(run.model.head, counts, settings.temperature).predict(train, left.features)
    for head in KEPT:
        kept[head] = np.full(len(labelled), NOT_SCORED, np.uint8)
        kept[head][left_out] = guesses[head]
    return {head: score(left.labels, guess, corpus.labels) for head, guess in guesses.items()}, kept


def add(roots: list[Path], date: str, machine: str, table: Path, archive: Path) -> int:
    """Adds finished runs that are not there yet. Returns how many."""
    rows, kept = load(table, archive) if table.exists() else ([], {})
    known = {name_of(row) for row in rows}
    new = []
    for folder in sorted({path.parent for root in roots for path in root.rglob("result.json")}):
        settings = json.loads((folder / "settings.json").read_text())  # of any version
        if name_of(identity(settings)) not in known:
            row, predictions = read_run(folder, settings, date, machine)
            new.append({key: str(value) for key, value in row.items()})
            kept |= predictions
    everything = sorted(rows + new, key=lambda row: [row[key] for key in (*SAME, "arm", "seed")])
    # A row means that its run is kept. So the table comes last: after a kill before it, the run counts as new again.
    atomically(archive, lambda path: np.savez_compressed(path, **kept))
    atomically(table, lambda path: write_table(path, list((new or rows)[0]), everything))
    return len(new)


def write_table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def load(table: Path, archive: Path) -> tuple[list[dict[str, str]], Kept]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(archive) as arrays:
        return rows, dict(arrays)


def compare(rows: list[dict[str, str]], kept: Kept, split: str | None = None) -> list[dict[str, str]]:
    """Every arm against the cross-entropy with as many epochs, on the seeds of both, in percent.

    Without `split`, on the rest where the runs have one, else on dev. Both arms have the same head, head by head; at
    last each has the head that is best for it on dev. That head is chosen again in every draw of the bootstrap.
    """
    arms: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        of = split or ("rest" if row["rest lda weighted-F1"] else "dev")
        if row[f"{of} lda weighted-F1"]:  # else the run has no such split
            arms.setdefault((*(row[key] for key in SAME), of, row["epochs"], row["arm"]), {})[row["seed"]] = row
    lines = []
    for (*where, of, epochs, arm), runs in arms.items():
        ce = [key for key in arms if key[:-1] == (*where, of, epochs) and "--objective ce" in key[-1]]
        base = arms[min(ce, key=lambda key: len(key[-1]))] if ce else {}  # the one with the fewest options
        seeds = sorted(set(runs) & set(base), key=int)
        if runs is base or not seeds:
            continue
        names = [[name_of(side[seed]) for seed in seeds] for side in (runs, base)]
        found = f1_of_heads(kept, where[0], names, of)
        on_dev = found if of == "dev" else f1_of_heads(kept, where[0], names, "dev")
        best, best_in_draws = (scores.argmax(-1) for scores in on_dev["weighted"])
        every = {head: (np.full(2, i), np.full(best_in_draws.shape, i)) for i, head in enumerate(KEPT)}
        every[f"{BEST}: {' / '.join(KEPT[i] for i in best)}"] = best, best_in_draws
        for title, heads in every.items():
            line = {"dataset": where[0], "encoder": ENCODERS.get(where[1], where[1])}
            line |= {"share of the dialogues": where[2], "scored on": of, "arm": arm}
            line |= {"seeds": str(len(seeds)), "head": title}
            for average, scores in found.items():
                means, draws = (
                    np.take_along_axis(values, chosen[..., None], -1)[..., 0]
                    for values, chosen in zip(scores, heads, strict=True)
                )
                of_both = {name: 100 * value for name, value in interval(means, draws).items()}
                line[f"{average}-F1, arm / cross-entropy"] = " / ".join(f"{100 * mean:.1f}" for mean in means)
                line[f"difference, {average}"] = f"{of_both['difference']:+.1f}"
                line[f"95% interval, {average}"] = f"{of_both['low']:+.1f} to {of_both['high']:+.1f}"
            lines.append(line)
    return lines


def f1_of_heads(kept: Kept, dataset: str, names: list[list[str]], split: str) -> dict[str, tuple[Any, Any]]:
    """By average of F1: the means of two arms by head (2, heads), and those of the draws (draws, 2, heads)."""
    gold, dialogues = kept[f"{dataset}/{split}/gold"], kept[f"{dataset}/{split}/dialogue"].tolist()
    guesses = np.stack([[kept[f"{name}/{split}/{head}"] for name in side] for side in names for head in KEPT])
    classes = 1 + max(int(array[array != NOT_SCORED].max()) for array in (gold, guesses))
    found = bootstrap_f1(gold, guesses, dialogues, classes)
    return {
        average: (means.reshape(2, -1), draws.reshape(-1, 2, len(KEPT))) for average, (means, draws) in found.items()
    }


def overview(lines: list[dict[str, str]], average: str) -> list[dict[str, str]]:
    """The differences in one F1: a row for each arm, a column for each head."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    keys = ("dataset", "encoder", "share of the dialogues", "scored on", "arm", "seeds")
    for line in lines:
        about = {key: line[key] for key in keys}
        row = rows.setdefault(tuple(about.values()), about)
        head = line["head"].split(":")[0]
        row[head] = f"{line[f'difference, {average}']} ({line[f'95% interval, {average}']})"
    return list(rows.values())


def draw(lines: list[dict[str, str]], path: Path) -> None:
    """The differences of SPCL with their intervals, by data and encoder: a row of panels by F1, a column by head."""
    from matplotlib import pyplot as plt

    # Of several settings of a loss the one with the most seeds stands.
    spcl = [line for line in lines if "--objective ce" not in line["arm"]]
    several = sorted(spcl, key=lambda line: int(line["seeds"]))
    lines = list({(*_place(line), _loss(line), line["head"].split(":")[0]): line for line in several}.values())
    places = sorted({_place(line) for line in lines}, key=lambda at: (at[0] != "MELD", at[0], at[1] != "MiniLM", at))
    figure, axes = plt.subplots(
        2, 2, sharex=True, sharey="row", figsize=(13, 6), layout="constrained", facecolor="white"
    )
    titles = {"prototype": "prototypes are the classifier of all losses", BEST: "each loss has its best head on dev"}
    for row, average in zip(axes, ("weighted", "macro"), strict=True):
        row[0].set_ylabel(f"points of {average}-F1\nover cross-entropy")
        for axis, (head, title) in zip(row, titles.items(), strict=True):
            for loss, color, shift in (("SPCL alone", "#1f5fa8", -0.12), ("cross-entropy + SPCL", "#d9822b", 0.12)):
                shown = [line for line in lines if line["head"].startswith(head) and _loss(line) == loss]
                across = [places.index(_place(line)) + shift for line in shown]
                ends = [list(map(float, line[f"95% interval, {average}"].split(" to "))) for line in shown]
                axis.vlines(across, [low for low, _ in ends], [high for _, high in ends], color=color, linewidth=2)
                axis.plot(
                    across, [float(line[f"difference, {average}"]) for line in shown], "o", color=color, label=loss
                )
            axis.axhline(0, color="black", linewidth=1)
            axis.set_xticks(range(len(places)), [f"{place[2]:.0%}\n{place[0]}\n{place[1]}" for place in places], size=7)
            if average == "weighted":
                axis.set_title(title)
            else:
                axis.set_xlabel("share of the training dialogues, dataset, encoder")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def _place(line: dict[str, str]) -> tuple[str, str, float]:
    return line["dataset"], line["encoder"], float(line["share of the dialogues"])


def _loss(line: dict[str, str]) -> str:
    return "SPCL alone" if " none " in line["arm"] else "cross-entropy + SPCL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", type=Path, metavar="DIR", help="keep the finished runs in these folders")
    parser.add_argument("--date", help="of the runs that are added, YYYY-MM-DD")
    parser.add_argument("--machine", help="on which they ran")
    parser.add_argument("--split", choices=SPLITS, help="compare on it (default: the rest, or dev where there is none)")
    parser.add_argument("--least-seeds", type=int, default=1, help="compare arms with at least so many seeds")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the differences")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where tables and predictions lie")
    arguments = parser.parse_args()
    table, archive = arguments.results / "erc_runs.csv", arguments.results / "erc_predictions.npz"
    if arguments.add:
        if not arguments.date or not arguments.machine:
            parser.error("--add needs --date and --machine")
        print(f"{add(arguments.add, arguments.date, arguments.machine, table, archive)} runs added")
        return
    lines = compare(*load(table, archive), arguments.split)
    lines = [line for line in lines if int(line["seeds"]) >= arguments.least_seeds]
    if arguments.figure:
        draw(lines, arguments.figure)
    for average in ("weighted", "macro"):
        print(f"\nPoints of {average}-F1 over cross-entropy (95% interval):\n")
        print(measure.table(overview(lines, average)))
    print(f"\n{measure.table(lines)}")


if __name__ == "__main__":
    main()
