"""Runs a comparison of arms over datasets and seeds, and reports on it.

An arm is a name and the options that it adds to the scripts' own. A finished run is skipped and an interrupted one goes
on, so the same command continues the comparison.

examples:
  python examples/reproduce.py                                             SPCL, cross-entropy and both, five seeds
  python examples/reproduce.py --arms ce both --seeds 0 1                  two arms, two seeds
  python examples/reproduce.py --arm "cool=--temperature 0.03" --arms ce   an arm of your own, against cross-entropy
  python examples/reproduce.py --report runs/a runs/b                      only the report, on runs that are there
  python examples/reproduce.py --practice --seeds 0 --arms ce -- --limit 9 --epochs 2     options for all arms
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erc.command import Parser, exit_code
from erc.data import load_corpus
from erc.files import InputError
from erc.folder import RunFolder
from erc.practice import PRACTICE
from erc.settings import OBJECTIVES, PRESETS, Settings, add_options, given, preset

DATASETS = ("MELD", "IEMOCAP", "EmoryNLP")
# With --curriculum on or half, an epoch holds half the data. All arms see equally much data: an arm that differs from
# the preset in this gets twice or half the preset's epochs. An arm that names its epochs keeps them.
ARMS = {
    "spcl": "--contrastive-weight none --curriculum on",
    "spcl-all": "--contrastive-weight none --curriculum all",
    "spcl-half": "--contrastive-weight none --curriculum half",
    "ce": "--objective ce --curriculum all",
    "both": "--contrastive-weight 0.2 --curriculum all",
    **{name: f"--objective {name} --contrastive-weight none --curriculum all" for name in OBJECTIVES[1:-1]},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is still to do, and reports. Returns the exit code: 2 for unusable input, 130 after Ctrl-C."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"), metavar="DIR", help="runs and report")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="default: all three")
    parser.add_argument("--practice", action="store_true", help="the practice corpus instead, which needs no data")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[], help="default: spcl, ce and both")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=OPTIONS", help="a further arm; repeatable")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--report", nargs="+", type=Path, metavar="DIR", help="only report, on the runs in these")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu", help="default: cpu")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="options of the scripts, for all arms")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _run(arguments), "the same command continues")


def _run(arguments: argparse.Namespace) -> None:
    RunFolder(arguments.output).check()
    if not arguments.report:
        train_all(arguments)
    from erc.report import collect, write_report  # imported late: torch takes seconds

    roots = arguments.report or [arguments.output / "runs"]
    if not (finished := collect(roots)):
        raise InputError(f"no finished run in {', '.join(map(str, roots))}: a run's folder has a result.json")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_report(finished, arguments.output)
    print(f"report in {arguments.output / 'report.md'}")


def train_all(arguments: argparse.Namespace) -> None:
    """Trains every run that is not finished."""
    arms = {name: ARMS[name] for name in arguments.arms}
    for own in arguments.arm:
        name, equals, options = own.partition("=")
        if not equals or not name:
            raise InputError(f"--arm must be NAME=OPTIONS; received {own!r}")
        arms[name] = options
    arms = arms or {name: ARMS[name] for name in ("spcl", "ce", "both")}
    datasets = [PRACTICE] if arguments.practice else arguments.datasets
    runs = grid(datasets, arms, arguments.seeds, arguments.preset, arguments.options)
    corpora = {name: load_corpus(name) for name in datasets}
    from erc.train import train  # imported late too

    for number, (name, settings) in enumerate(runs.items(), start=1):
        result = train(settings, corpora[settings.dataset], arguments.output / "runs" / name, resume=True)
        dev, test = (result[split][result["selected_by"]]["weighted_f1"] for split in ("dev", "test"))
        print(f"[{number}/{len(runs)}] {name}: dev {dev:.4f}, test {test:.4f}", flush=True)


def grid(
    datasets: Sequence[str], arms: dict[str, str], seeds: Sequence[int], preset_name: str, common: Sequence[str]
) -> dict[str, Settings]:
    """The settings of every run by its name. Seeds come first, so that an unfinished comparison has all arms."""
    return {
        f"{dataset.lower().replace(' ', '-')}_{arm}_{seed}": arm_settings(options, preset_name, dataset, seed, common)
        for seed in seeds
        for arm, options in arms.items()
        for dataset in datasets
    }


def arm_settings(options: str, preset_name: str, dataset: str, seed: int, common: Sequence[str] = ()) -> Settings:
    """The settings of one run: those of the preset, then the common options, then the arm's own."""
    try:
        own = _read(shlex.split(options))
    except ValueError as error:  # an unclosed quote
        raise InputError(f"an arm's options must be as on a command line; received {options!r}: {error}") from error
    shared = _read(common)
    objective = (shared | own).get("objective", "spcl")
    base = Settings(dataset=dataset, seed=seed, **{**preset(preset_name, dataset, objective), **shared})
    settings = replace(base, **own)
    parts = [1 if one.curriculum == "all" else 2 for one in (base, settings)]  # an epoch's, in all the data
    if "epochs" not in own:
        settings = replace(settings, epochs=max(1, settings.epochs * parts[1] // parts[0]))
    return settings


def _read(options: Sequence[str]) -> dict[str, Any]:
    parser = Parser(add_help=False)
    add_options(parser)
    read = given(parser.parse_args(options))
    if "seed" in read:
        raise InputError(f"--seeds names the seeds of all arms; received --seed {read['seed']}")
    return read


if __name__ == "__main__":
    raise SystemExit(main())
