"""The command line of the grid."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .arms import ALL_ARMS, STUDIES
from .data import DATASETS, EMORYNLP_REDUCED, NoDataError
from .dialogues import InputError
from .grid import Job, jobs, load_corpora, run
from .practice import PRACTICE
from .settings import add_options, given

PUBLIC = [name for name in DATASETS if name != EMORYNLP_REDUCED]


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Runs the grid, writes the report.

    Returns:
        The exit code: 2 where the input cannot be used, 130 after Ctrl-C.
    """
    arguments = _parser(description).parse_args(argv)
    try:
        if arguments.report:
            report(arguments.report, arguments.output, None, arguments.data_root)
        else:
            _run(arguments)
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"), metavar="DIR", help="runs and report")
    parser.add_argument("--datasets", nargs="+", choices=PUBLIC, default=PUBLIC, help="default: all three")
    parser.add_argument("--practice", action="store_true", help="the practice corpus instead, which needs no data")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=["methods", "curriculum"])
    parser.add_argument("--arms", nargs="+", choices=list(ALL_ARMS), metavar="ARM", help="these instead of studies'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: five")
    parser.add_argument(
        "--preset",
        choices=["minilm", "mpnet", "paper"],
        default="minilm",
        help="minilm: 22M parameters; mpnet: 110M, from the hub or a folder; paper: 355M, with the authors' settings",
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each a process of its own")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the folder with meld/, iemocap/ and emorynlp/")
    parser.add_argument("--report", nargs="+", type=Path, metavar="DIR", help="only report, on the runs in these")
    add_options(parser.add_argument_group("settings that all arms share, unless the arm is about them"))
    return parser


def _run(arguments: argparse.Namespace) -> None:
    arms = arguments.arms or list(dict.fromkeys(arm for study in arguments.studies for arm in STUDIES[study]))
    datasets = [PRACTICE] if arguments.practice else arguments.datasets
    changes = {name: value for name, value in given(arguments).items() if name != "seed"}
    grid = jobs(datasets, arms, arguments.seeds, _preset(arguments.preset), changes)
    corpora = load_corpora(datasets, arguments.data_root)
    runs = arguments.output / "runs"
    for number, (job, result) in enumerate(run(grid, runs, corpora, arguments.workers), start=1):
        print(f"[{number}/{len(grid)}] {_line(job, result)}", flush=True)
    report([runs], arguments.output, [job.name for job in grid], arguments.data_root)


def _preset(name: str) -> str:
    if name != "minilm":
        return name
    from .command import default_preset

    return default_preset()


def _line(job: Job, result: dict[str, dict[str, dict[str, float]]]) -> str:
    dev, test = (result[split][job.settings.selects_by]["weighted_f1"] for split in ("dev", "test"))
    return f"{job.name}: dev {dev:.4f}, test {test:.4f}"


def report(roots: Sequence[Path], output: Path, planned: Sequence[str] | None, data_root: Path | None) -> None:
    """Writes the report on the finished runs in `roots`, `planned` ones among them; without a dataset no maps of it."""
    from . import grid_report
    from .collect import by_dataset, collect
    from .grid_maps import map_of

    finished = collect(roots)
    if not finished:
        raise InputError(f"no finished run in {', '.join(map(str, roots))}: a run's folder has a result.json")
    output.mkdir(parents=True, exist_ok=True)
    maps = {}
    for (dataset, _), arms in by_dataset(finished).items():
        try:
            corpus = load_corpora([dataset], data_root)[dataset]
        except NoDataError as error:
            print(f"no map of representations: {error}", file=sys.stderr)
            continue
        for arm in grid_report.representatives(arms):
            maps[arm.best.path] = map_of(arm.best, corpus, output / "maps")
    # other calls may have put further runs there
    names = None if planned is None else {*planned, *(run.path.name for run in finished)}
    grid_report.write(finished, maps, output, None if names is None else len(names))
    print(f"report in {output / 'report.html'}, numbers in {output / 'results.json'}")
