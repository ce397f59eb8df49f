"""A run's folder and its checkpoints. No file in it is ever half written, so that an interrupted run can continue."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .files import InputError
from .settings import ANEW, FORMER, HEADS, NAMES, Settings

FORMAT = "spcl-erc 3"  # of checkpoints
# The files of a run besides settings.json. A folder may hold files of other programs, so whole names are matched.
CHECKPOINT, BEST = r"checkpoint-\d{4,}-\d{7,}\.pt", r"best-\d{4,}\.safetensors"
RESULTS = (
    "metrics.jsonl", "result.json", "best.safetensors", "reference.safetensors", "predictions.csv", "report.md",
    "confusion.png", "curves.png",  # the last is of earlier versions
)  # fmt: skip
OWN = "|".join([CHECKPOINT, BEST, *map(re.escape, RESULTS)])
UNFINISHED = rf"{CHECKPOINT}|{BEST}|partial-\d+-(settings\.json|{OWN})"  # what a finished run does not have


class RunFolder:
    """Names the files of a run and opens its folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.best = self.path / "best.safetensors"
        self.reference = self.path / "reference.safetensors"
        self.predictions = self.path / "predictions.csv"
        self.report = self.path / "report.md"

    def check(self) -> None:
        """Raises InputError where the path cannot be a folder, before any work is done."""
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise InputError(f"{place} is a file: --output must name a folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other trainings, except on Windows. A killed process loses it."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                import fcntl

                descriptor = os.open(self.path, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                # A fork that outlives the process would keep the lock; nothing forks here.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.path} is in use: another process trains there. Wait for it, or name another --output"
                raise InputError(message) from None
            except (ImportError, OSError):
                pass  # Nothing is locked on Windows and on some network file systems.
            yield

    def open(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Begins a run in the folder, or continues the one that it holds. InputError where that is not allowed."""
        if not self.settings.exists() and (others := self.found(OWN)):
            raise InputError(f"{others[0]} has the name of a run's file, but no run is there: name another --output")
        if overwrite:
            self.clear()
        stored = self.stored_settings()
        if stored is None:
            write_json(self.settings, asdict(settings))
        elif not resume:
            remedy = "--resume continues it, --overwrite replaces it, or name another --output"
            raise InputError(f"{self.path} already holds a run: {remedy}")
        elif stored != settings:
            pairs = ((name, getattr(stored, name), getattr(settings, name)) for name in NAMES)
            changed = ", ".join(f"{name} ({before!r}, now {now!r})" for name, before, now in pairs if before != now)
            remedy = "leave these options as they were, or name another --output"
            raise InputError(f"{self.path} holds a run of other settings: {changed}; {remedy}")

    def stored_settings(self) -> Settings | None:
        """The settings of the run that the folder holds, if it holds one."""
        if not self.settings.exists():
            return None
        try:
            stored = json.loads(self.settings.read_text(encoding="utf-8")).items()
            return Settings(**{name: value for name, value in stored if (name, value) not in FORMER.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{self.settings} holds no settings of this version ({error}); {ANEW}") from error

    def stored_result(self) -> dict[str, Any] | None:
        """The result, if the run is finished."""
        if not self.result.exists():
            return None
        try:
            result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
            if lacking := [head for head in HEADS if head not in result["dev"] or head not in result["test"]]:
                raise ValueError(f"it lacks {', '.join(lacking)}")
            return result
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.result} holds no result of this version ({error!r}); {ANEW}") from error

    def checkpoints(self) -> list[Path]:
        """Its checkpoints, the newest last."""
        return self.found(CHECKPOINT)

    def found(self, pattern: str) -> list[Path]:
        """The files whose whole names match."""
        return sorted(path for path in self.path.glob("*") if re.fullmatch(pattern, path.name))

    def best_of(self, epoch: int) -> Path:
        """The file for the weights of an epoch that was the best so far when it ended."""
        return self.path / f"best-{epoch:04d}.safetensors"

    def drop_checkpoints(self, but: Iterable[Path] = ()) -> None:
        """Removes the files that only an unfinished run needs, except those in `but`."""
        for path in {*self.found(UNFINISHED)} - {*but}:
            path.unlink()

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else. Settings go last: a kill leaves a run to clear."""
        if not self.settings.exists():
            return
        text = self.settings.read_text(encoding="utf-8", errors="replace")
        if not all(f'"{name}"' in text for name in ("dataset", "encoder", "objective")):
            raise InputError(f"{self.settings} holds no settings of a run: name another --output")
        for path in (*self.found(rf"{UNFINISHED}|{OWN}"), self.settings):
            path.unlink()


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill another file, then renames it to `path`: at any time `path` is complete or absent.

    After a power cut, a file system that reorders renames and deletions may have neither the new file nor the former.
    """
    unfinished = path.with_name(f"partial-{os.getpid()}-{path.name}")  # other processes may write the same report
    try:
        write(unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut could leave the name without the content
        unfinished.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how writers report a full disk
        place = next(filter(Path.exists, path.absolute().parents))  # the folder, unless it is gone
        free = f"{shutil.disk_usage(place).free / 2**20:.1f} MiB were free"
        unfinished.unlink(missing_ok=True)
        remedy = "Make room if that is too little, and continue with --resume"
        raise InputError(f"{path} cannot be written: {error}; {free}. {remedy}") from error


def write_text(path: Path, text: str) -> None:
    atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


@dataclass
class Progress:
    """How far a run has come. A checkpoint holds it beside weights, memory, sampler and random states."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    update: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums over the epoch's batches
    difficulty: dict[str, float] = field(default_factory=dict)  # means of the epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1


def save_checkpoint(folder: RunFolder, progress: Progress, parts: dict[str, Any], accelerator: Any) -> None:
    """Writes metrics.jsonl and a checkpoint. If the process is killed meanwhile, the previous checkpoint remains.

    Every part has a state dict, and is the same in all processes.
    """
    import torch  # late, as in `read_checkpoint`: --help does not need it
    from accelerate.utils import gather_object

    # Dropout reads these generators. Everything else that is random depends on seed and epoch alone.
    random = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    everyones = gather_object([random])
    if accelerator.is_main_process:
        write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in progress.history))
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"format": FORMAT, "progress": asdict(progress), "random": everyones}
        newest = folder.path / f"checkpoint-{progress.epoch:04d}-{progress.batch:07d}.pt"
        atomically(newest, partial(torch.save, state))
        folder.drop_checkpoints(but={newest, folder.best_of(progress.best_epoch)})  # only now: a kill may come before
    accelerator.wait_for_everyone()


def restore_checkpoint(path: Path, progress: Progress, parts: dict[str, Any], accelerator: Any) -> None:
    """Brings progress, parts and random states to where `save_checkpoint` saved them."""
    import torch

    state = read_checkpoint(path)
    if (before := len(state["random"])) != (now := accelerator.num_processes):
        remedy = "Continue with as many, or begin anew with --overwrite"
        raise InputError(f"{path} is the checkpoint of a run with {before} processes; received {now}. {remedy}")
    vars(progress).update(state["progress"])
    for name, part in parts.items():
        part.load_state_dict(state[name])
    random = state["random"][accelerator.process_index]
    torch.set_rng_state(random["cpu"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], accelerator.device)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. An incomplete or unknown file is an InputError."""
    import torch

    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load would read changed numbers without complaint
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can make the readers raise anything
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is no whole checkpoint of format {FORMAT!r}; begin anew with --overwrite")
    return state
