"""The command line that all example scripts share."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from .data import Corpus, load_corpus, split_table
from .files import InputError, NoDataError
from .folder import RunFolder
from .practice import PRACTICE
from .settings import PRESETS, Settings, add_options, given, preset


class Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def main(dataset: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Parses, trains, prints the result. Returns the exit code: 2 for unusable input, 130 after Ctrl-C."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="DIR", help="the run folder (default: a new one in runs/)")
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--resume", action="store_true", help="continue the run that --output holds, if it holds one")
    former.add_argument("--overwrite", action="store_true", help="replace the run that --output holds")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder with the dataset's files")
    practice = parser.add_mutually_exclusive_group()
    practice.add_argument("--practice", action="store_true", help="train on the practice corpus, which needs no data")
    practice.add_argument("--or-practice", action="store_true", help="do so if the dataset cannot be found")
    about = "the values of the options below that are not given (default: cpu, which serves a GPU too)"
    parser.add_argument("--preset", choices=list(PRESETS), help=about)
    add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.output is None:
        parser.error("--resume needs --output, the folder of the run to continue")

    output = arguments.output or Path("runs") / time.strftime(f"{dataset.lower()}-%Y%m%d-%H%M%S")
    continues = f"to continue, run the same script with --resume --output {output}"
    return exit_code(lambda: _run(dataset, output, arguments), continues)


def exit_code(run: Callable[[], object], continues: str) -> int:
    """Calls `run` and returns the exit code. Unusable input, an OSError and Ctrl-C print one line, no traceback."""
    try:
        run()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {continues}", file=sys.stderr)
        return 130
    return 0


def _run(dataset: str, output: Path, arguments: argparse.Namespace) -> None:
    folder = RunFolder(output)
    folder.check()
    stored = folder.stored_settings() if arguments.resume else None
    corpus = _corpus(stored.dataset if stored is not None else dataset, arguments)
    continues = stored is not None and arguments.preset is None
    named = given(arguments)
    base = (
        asdict(stored) if continues else preset(arguments.preset or "cpu", corpus.name, named.get("objective", "spcl"))
    )
    settings = Settings(**{**base, "dataset": corpus.name, **named})
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process:
        used = corpus.first(settings.limit).part(settings.train_fraction, settings.seed)
        print(f"{corpus.name}: train to learn from, dev to select by, test to score once; results in {output}")
        print(split_table(used), flush=True)
        if settings.limit is not None:
            print(f"only the first {settings.limit} dialogues of each split: a trial, whose scores say nothing")

    from .train import train  # imported late: torch takes seconds, and the errors above do not need it

    train(settings, corpus, output, resume=arguments.resume, overwrite=arguments.overwrite)
    if main_process:
        print(f"\n{folder.report.read_text(encoding='utf-8')}\nresults in {output}", flush=True)


def _corpus(dataset: str, arguments: argparse.Namespace) -> Corpus:
    try:
        return load_corpus(PRACTICE if arguments.practice else dataset, arguments.data_dir)
    except NoDataError as error:
        if not arguments.or_practice:
            raise
        advice = f"This run uses the practice corpus instead; its scores say nothing about {dataset}."
        print(f"{error}\n{advice}", file=sys.stderr)
        return load_corpus(PRACTICE)
