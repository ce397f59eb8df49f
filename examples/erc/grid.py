"""Many runs one after the other: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

    def folder(self, root: Path) -> RunFolder:
        return RunFolder(root / self.name)


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


def run(grid: Sequence[Job], root: Path, corpora: dict[str, Corpus]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Does what is still to do, and yields each run's result, those of finished runs too."""
    from .training import train

    for job in grid:
        folder = job.folder(root)
        result = folder.stored_result()
        if result is None:
            result = train(job.settings, corpora[job.settings.dataset], folder.path, resume=True)
        yield job, result


def load_corpora(datasets: Sequence[str], data_root: Path | None) -> dict[str, Corpus]:
    """The corpora by name; `data_root` holds a folder for each, named in small letters."""
    return {name: load_corpus(name, data_root / name.lower() if data_root else None) for name in datasets}
