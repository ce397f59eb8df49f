"""Many runs one after the other: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .arms import arm_settings, without_seed
from .data import load_corpus
from .dialogues import Corpus
from .run_folder import RunFolder
from .settings import Settings


@dataclass(frozen=True)
class Job:
    """A run and the folder that it is to have."""

    name: str
    settings: Settings


def jobs(
    datasets: Sequence[str], arms: Sequence[str], seeds: Sequence[int], preset_name: str, given: dict[str, Any]
) -> list[Job]:
    """The runs, seed by seed, so that an unfinished grid has all arms; arms of equal settings are run once."""
    chosen: dict[tuple[int, tuple[tuple[str, Any], ...]], Job] = {}
    for seed in seeds:
        for arm in arms:
            for dataset in datasets:
                settings = arm_settings(arm, preset_name, dataset, seed, given)
                name = f"{dataset.lower().replace(' ', '-')}_{arm}_{seed}"
                chosen.setdefault((seed, without_seed(settings)), Job(name, settings))
    return list(chosen.values())


def run(
    grid: Sequence[Job], root: Path, corpora: dict[str, Corpus], workers: int = 1
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Does what is still to do, and yields each run's result as it is there, those of finished runs too.

    Several `workers` are processes of their own: a small encoder leaves most of a large GPU idle.
    """
    if workers == 1:
        yield from ((job, _do(job, root, corpora[job.settings.dataset])) for job in grid)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        jobs_by_future = {pool.submit(_do, job, root, corpora[job.settings.dataset]): job for job in grid}
        for future in as_completed(jobs_by_future):
            yield jobs_by_future[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _do(job: Job, root: Path, corpus: Corpus) -> dict[str, Any]:
    folder = RunFolder(root / job.name)
    result = folder.stored_result()
    if result is None:
        from .training import train

        result = train(job.settings, corpus, folder.path, resume=True)
    return result


def load_corpora(datasets: Sequence[str], data_root: Path | None) -> dict[str, Corpus]:
    """The corpora by name; `data_root` holds a folder for each, named in small letters."""
    return {name: load_corpus(name, data_root / name.lower() if data_root else None) for name in datasets}
