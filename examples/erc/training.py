"""The training run: epochs, model selection on dev, and one look at test in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from spcl_loss import prototype_difficulty

from .checkpoint import Checkpoints
from .dialogues import Corpus, Dialogue, label_dialogues
from .encoder import load_model, load_tokenizer_and_backbone, precision, save_model
from .environment import environment
from .evaluation import Encoded, encode, evaluate
from .inputs import Sample
from .layouts import lay_out
from .learner import Learner
from .objectives import losses, rate_factor
from .progress import Progress, progress_bar, summary
from .prompts import Prompts
from .report import write_report
from .run_folder import RunFolder
from .settings import Settings
from .training_data import TrainingData
from .windows import Windows


def train(
    settings: Settings, corpus: Corpus, output: str | Path, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains and scores one model; all that comes of it lies in the folder `output`.

    Args:
        settings: what to do.
        corpus: what to learn from; its name must be `settings.dataset`.
        output: the run folder.
        resume: whether to continue the run that `output` holds; where there is none, one begins.
        overwrite: whether a run that `output` holds may be replaced.

    Returns:
        What result.json holds.
    """
    if corpus.name != settings.dataset:
        raise ValueError(f"corpus must be {settings.dataset}, as in the settings; received {corpus.name}")
    accelerator = Accelerator(mixed_precision=precision(settings), gradient_accumulation_steps=settings.accumulation)
    folder = RunFolder(output)
    if accelerator.is_main_process:
        folder.open(settings, resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()
    if (result := folder.stored_result()) is not None:
        return result
    result = Training(settings, corpus.first(settings.limit), folder, accelerator).run()
    accelerator.free_memory()
    return result


class Training:
    """One run; `train` is its door."""

    def __init__(self, settings: Settings, corpus: Corpus, folder: RunFolder, accelerator: Accelerator) -> None:
        self.settings, self.corpus, self.folder, self.accelerator = settings, corpus, folder, accelerator
        self.clock = time.monotonic()
        set_seed(settings.seed)
        self.tokenizer, backbone = load_tokenizer_and_backbone(settings)
        self.learner = Learner(settings, backbone, len(corpus.labels), accelerator)
        self.criterion = self.learner.criterion
        set_seed(settings.seed, device_specific=True)  # each process drops out other units

        self.data = TrainingData(settings, self._lay_out(corpus.train), accelerator)
        self.dev = self._lay_out(corpus.dev).own_queries()
        self.progress = Progress()
        parts = {**self.learner.parts(), "sampler": self.data.sampler}
        self.checkpoints = Checkpoints(folder, self.progress, parts, accelerator)

    def run(self) -> dict[str, Any]:
        newest = self.folder.checkpoint()
        if newest is None:
            self._name_prototypes()
            self._begin_epoch(self._survey())
        else:
            self._continue(newest)
        while not self._finished():
            self._train_epoch()
            self._end_epoch()
        return self._conclude()

    # The beginning

    def _lay_out(self, dialogues: Sequence[Dialogue]) -> Prompts | Windows:
        return lay_out(self.settings, dialogues, self.tokenizer)

    def _name_prototypes(self) -> None:
        """Begins learned prototypes at the classes' names, if the settings say so."""
        if self.settings.prototype_kind == "label_text":
            names = self._lay_out(label_dialogues(self.corpus.labels)).own_queries()
            prototypes = self.learner.unwrapped.prototypes
            prototypes.data.copy_(self._encode(names, "encoding the classes' names").features)

    def _continue(self, newest: Path) -> None:
        self.checkpoints.restore(newest)
        self.data.prepare(self.progress.epoch)
        if self.accelerator.is_main_process:
            tqdm.write(f"continuing after epoch {self.progress.epoch}, batch {self.progress.batch}")

    # An epoch

    def _encode(self, samples: Sequence[Sample], what: str) -> Encoded:
        size, padding = self.settings.encoding_batch_size, self.data.layout.padding
        return encode(self.learner.scored, samples, self.accelerator, padding=padding, batch_size=size, what=what)

    def _survey(self) -> Tensor:
        """Encodes the training set with the present weights: class means for the memory, difficulties (n,)."""
        encoded = self._encode(self.data.samples, "encoding the training set")
        self.criterion.memory.initialize(encoded.features, encoded.labels)
        return prototype_difficulty(encoded.features, encoded.labels).cpu()

    def _begin_epoch(self, difficulty: Tensor | None) -> None:
        """Without new difficulties the histograms of the last ones stay."""
        self.progress.difficulty = self.data.begin(self.progress.epoch, difficulty) or self.progress.difficulty
        self._save()

    def _train_epoch(self) -> None:
        progress, accelerator, learner = self.progress, self.accelerator, self.learner
        batches = self.data.batches(progress.epoch)
        left = batches[progress.batch :]
        learned = learner.unwrapped.prototypes
        sums = torch.tensor(progress.losses, device=accelerator.device)
        learner.model.train()
        self.criterion.train()
        with self._bar(len(batches)) as bar:
            for members, batch in zip(left, self.data.loader(left), strict=True):
                with accelerator.accumulate(learner.model):
                    features, scores = learner.model(batch)
                    both = losses(self.settings, self.criterion, features, scores, batch.labels, learned)
                    accelerator.backward(both.sum())
                    share = progress.batch / len(batches)
                    learner.update(rate_factor(self.settings, progress.update, progress.epoch, share))
                    progress.update += int(accelerator.sync_gradients)
                self.data.observe(members, features, batch.labels, self.criterion.memory)
                sums += both.detach()
                progress.batch += 1
                bar.update()
                if progress.batch % 20 == 0:  # to read a loss is to wait for the device
                    contrastive, head = (sums / progress.batch).tolist()
                    bar.set_postfix(contrastive=f"{contrastive:.3f}", head=f"{head:.3f}", refresh=False)
                if accelerator.sync_gradients and self._checkpoint_due(len(batches)):
                    progress.losses = sums.tolist()
                    self._save()
        progress.losses = sums.tolist()

    def _bar(self, batches: int) -> tqdm[Any]:
        progress = self.progress
        return progress_bar(
            total=batches,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            unit="batch",
            shown=self.accelerator.is_main_process,
        )

    def _end_epoch(self) -> None:
        """Scores dev against the class means under the new weights, from which the next epoch starts too."""
        progress, head = self.progress, self.settings.selects_by
        self.data.prepare(progress.epoch + 1)
        difficulty = self._survey() if self.data.needs_pass(progress.epoch + 1) else self.data.observed()
        scores = evaluate(self.criterion, self._encode(self.dev, "encoding dev"), self.corpus.labels)
        contrastive_loss, head_loss = (total / max(1, progress.batch) for total in progress.losses)
        progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, [0.0, 0.0]
        line = {
            "epoch": progress.epoch,
            "updates": progress.update,
            "seconds": self._seconds(),
            "contrastive_loss": contrastive_loss,
            "head_loss": head_loss,
            "dev": scores,
            "difficulty": progress.difficulty,
        }
        progress.history.append(line)
        if progress.dev_score(progress.epoch, head) > progress.dev_score(progress.best_epoch, head):
            progress.best_epoch = progress.epoch
        if self.accelerator.is_main_process:
            tqdm.write(summary(line, self.settings.epochs))
        if self._finished():
            self._save()
        else:
            self._begin_epoch(difficulty)

    def _finished(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        tired = patience is not None and progress.epoch - progress.best_epoch >= patience
        return tired or progress.epoch >= self.settings.epochs

    def _seconds(self) -> float:
        """Since the run began, interruptions left out."""
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        return self.progress.seconds

    # Checkpoints

    def _checkpoint_due(self, batches: int) -> bool:
        batch = self.progress.batch
        # several batches make an update, so a multiple of both
        return batch < batches and batch % (self.settings.checkpoint_steps * self.settings.accumulation) == 0

    def _save(self) -> None:
        self._seconds()
        progress = self.progress
        improved = progress.best_epoch > 0 and progress.best_epoch == progress.epoch and progress.batch == 0
        self.checkpoints.save(self._save_model if improved else None)

    def _save_model(self, path: Path) -> None:
        about = {"settings": json.dumps(asdict(self.settings)), "labels": json.dumps(self.corpus.labels)}
        save_model(path, self.accelerator.unwrap_model(self.learner.scored), self.criterion.memory, about)

    # The end

    def _conclude(self) -> dict[str, Any]:
        """Scores the best weights on test, for the first and only time."""
        load_model(self.folder.best, self.accelerator.unwrap_model(self.learner.scored), self.criterion.memory)
        samples = self._lay_out(self.corpus.test).own_queries()
        encoded = self._encode(samples, "encoding test")
        settings, progress = self.settings, self.progress
        result = {
            "dataset": self.corpus.name,
            "encoder": settings.encoder,
            "objective": settings.objective,
            "curriculum": settings.curriculum,
            "seed": settings.seed,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "selected_by": f"dev weighted-F1 of the {settings.selects_by} head",
            "seconds": self._seconds(),
            "precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
            "environment": environment(),
            "dev": progress.history[progress.best_epoch - 1]["dev"],
            "test": evaluate(self.criterion, encoded, self.corpus.labels),
        }
        if self.accelerator.is_main_process:
            write_report(self.folder, result, progress.history, self.corpus, samples, encoded, self.criterion)
            self.folder.drop_checkpoints()
        self.accelerator.wait_for_everyone()
        return result
