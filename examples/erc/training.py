"""The training run: epochs, checkpoints, model selection on dev, and one look at test in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from spcl_loss import DifficultyCurriculumSampler, prototype_difficulty

from . import checkpoint
from .batches import RandomShareSampler, length_buckets
from .dialogues import Corpus, Dialogue, InputError
from .encoder import EmotionModel, load_model, load_tokenizer_and_backbone, precision, save_model
from .environment import environment
from .evaluation import Encoded, encode, evaluate
from .objectives import build_criterion, losses, rate_factor
from .progress import Progress, progress_bar, summary
from .prompts import Prompts, Sample, build_prompts, collate, label_dialogues
from .report import difficulty_counts, write_report
from .run_folder import RunFolder, link
from .settings import Settings


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
        model = EmotionModel(
            backbone,
            len(corpus.labels),
            head_trains_encoder=settings.head_trains_encoder,
            learns_prototypes=settings.prototype_kind in ("learned", "label_text"),
        )
        if settings.difficulty_pass != "every" and accelerator.num_processes > 1:
            raise InputError(
                f"difficulty_pass must be every with {accelerator.num_processes} processes, which would each observe "
                f"other samples; received {settings.difficulty_pass}"
            )
        if settings.freeze_embeddings:
            model.freeze_embeddings()
        criterion = build_criterion(
            settings, len(corpus.labels), model.width, gather_distributed=accelerator.num_processes > 1
        )
        optimizer = torch.optim.AdamW(model.parameter_groups(settings), fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.criterion = criterion.to(accelerator.device)
        self.average: AveragedModel | None = None
        if settings.average:
            # a copy of the weights, which follows them; the first update makes both equal
            following = get_ema_multi_avg_fn(settings.average)
            self.average = AveragedModel(accelerator.unwrap_model(self.model), multi_avg_fn=following)
        set_seed(settings.seed, device_specific=True)  # each process drops out other units

        self.prompts = self._prompts(corpus.train)
        self.dev = self._prompts(corpus.dev).own_queries()
        self.samples = self._epoch_samples(0)
        self.sampler = self._sampler(len(self.samples))
        self.progress = Progress()

    def run(self) -> dict[str, Any]:
        newest = self.folder.checkpoint()
        if newest is None:
            self._name_prototypes()
            self._begin_epoch(self._survey())
        else:
            self._restore(newest)
        while not self._finished():
            self._train_epoch()
            self._end_epoch()
        return self._conclude()

    # What the run is made of

    def _prompts(self, dialogues: Sequence[Dialogue]) -> Prompts:
        return build_prompts(self.settings, dialogues, self.tokenizer)

    def _epoch_samples(self, epoch: int) -> list[Sample]:
        """The training set of an epoch: the same own queries always, and past queries drawn for the epoch."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return self.prompts.own_queries() + self.prompts.past_queries(self.settings.past_queries, generator)

    def _sampler(self, size: int) -> DifficultyCurriculumSampler | RandomShareSampler:
        settings = self.settings
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        if settings.curriculum == "on":
            unknown = torch.zeros(size)
            return DifficultyCurriculumSampler(
                unknown,
                num_epochs=settings.epochs,
                draw=settings.draw,
                seed=settings.seed,
                num_replicas=processes,
                rank=process,
            )
        share = {"all": 1.0, "half": 0.5}[settings.curriculum]
        return RandomShareSampler(size, share=share, seed=settings.seed, num_replicas=processes, rank=process)

    @property
    def _scored(self) -> torch.nn.Module:
        """The model that is scored and kept."""
        return self.model if self.average is None else self.average.module

    def _encode(self, samples: Sequence[Sample], what: str) -> Encoded:
        size = self.settings.encoding_batch_size
        return encode(self._scored, samples, self.accelerator, padding=self._padding, batch_size=size, what=what)

    @property
    def _padding(self) -> int:
        return self.tokenizer.pad_token_id or 0

    def _name_prototypes(self) -> None:
        """Begins learned prototypes at the classes' names, if the settings say so."""
        if self.settings.prototype_kind == "label_text":
            names = self._prompts(label_dialogues(self.corpus.labels)).own_queries()
            model = self.accelerator.unwrap_model(self.model)
            model.prototypes.data.copy_(self._encode(names, "encoding the classes' names").features)

    # An epoch

    def _survey(self) -> Tensor:
        """Encodes the training set with the present weights: class means for the memory, difficulties (n,)."""
        encoded = self._encode(self.samples, "encoding the training set")
        self.criterion.memory.initialize(encoded.features, encoded.labels)
        return prototype_difficulty(encoded.features, encoded.labels).cpu()

    def _surveys(self, epoch: int) -> bool:
        return {"every": True, "alternate": epoch % 2 == 0, "first": epoch == 0}[self.settings.difficulty_pass]

    def _remembered(self) -> Tensor:
        """Difficulties (n,) of the new samples from the last training steps; a past query has its turn's own."""
        own = {(sample.dialogue, sample.turn): i for i, sample in enumerate(self.prompts.own_queries())}
        places = [own[sample.dialogue, sample.turn] for sample in self.samples]
        assert isinstance(self.sampler, DifficultyCurriculumSampler)  # else the settings have a pass every epoch
        return self.sampler.difficulty[places]

    def _begin_epoch(self, difficulty: Tensor) -> None:
        if isinstance(self.sampler, DifficultyCurriculumSampler):
            self.sampler.set_epoch(self.progress.epoch, difficulty)
        else:
            self.sampler.set_epoch(self.progress.epoch)
        drawn = self.accelerator.gather(self.sampler.indices.to(self.accelerator.device)).cpu()
        self.progress.difficulty = difficulty_counts(difficulty, drawn)
        self._save()

    def _train_epoch(self) -> None:
        progress, accelerator = self.progress, self.accelerator
        batches = self._epoch_batches()
        left = batches[progress.batch :]
        learned = accelerator.unwrap_model(self.model).prototypes
        sums = torch.tensor(progress.losses, device=accelerator.device)
        self.model.train()
        self.criterion.train()
        with self._bar(len(batches)) as bar:
            for members, batch in zip(left, self._loader(left), strict=True):
                with accelerator.accumulate(self.model):
                    features, scores = self.model(batch)
                    both = losses(self.settings, self.criterion, features, scores, batch.labels, learned)
                    accelerator.backward(both.sum())
                    self._update(progress.batch / len(batches))
                if isinstance(self.sampler, DifficultyCurriculumSampler) and self.settings.difficulty_pass != "every":
                    centers, _ = self.criterion.memory.centroids()
                    self.sampler.observe(torch.tensor(members), features.detach(), batch.labels, centers)
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

    def _epoch_batches(self) -> list[list[int]]:
        lengths = [len(sample.input_ids) for sample in self.samples]
        seed = (self.settings.seed * 1_000_003 + self.progress.epoch) * 4099 + self.accelerator.process_index
        return length_buckets(self.sampler.indices.tolist(), lengths, self.settings.batch_size, seed)

    def _loader(self, batches: list[list[int]]) -> Any:
        """Accelerate's loader moves batches to the device and knows the last one; each process has its own already."""
        loader: DataLoader[Sample] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=partial(collate, padding=self._padding),
            generator=torch.Generator(),  # else a new loader advances the generator that dropout uses
        )
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)

    def _bar(self, batches: int) -> tqdm[Any]:
        progress = self.progress
        return progress_bar(
            total=batches,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            unit="batch",
            shown=self.accelerator.is_main_process,
        )

    def _update(self, epoch_share: float) -> None:
        if self.accelerator.sync_gradients:
            model = self.accelerator.unwrap_model(self.model)
            self.accelerator.clip_grad_norm_(model.backbone.parameters(), self.settings.clip_norm)
            # apart, so that neither part's gradients scale the other's down
            others = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
            torch.nn.utils.clip_grad_norm_(others, self.settings.clip_norm)
            factor = rate_factor(self.settings, self.progress.update, self.progress.epoch, epoch_share)
            for group in self.optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            self.progress.update += 1
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and self.accelerator.sync_gradients:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))

    def _end_epoch(self) -> None:
        """Scores dev against the class means under the new weights, from which the next epoch starts too."""
        progress, head = self.progress, self.settings.selects_by
        last = progress.epoch + 1 == self.settings.epochs
        self.samples = self.prompts.own_queries() if last else self._epoch_samples(progress.epoch + 1)
        difficulty = self._survey() if self._surveys(progress.epoch + 1) else self._remembered()
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

    def _parts(self) -> dict[str, Any]:
        """What all processes hold alike and a run continues from."""
        parts = {
            "model": self.accelerator.unwrap_model(self.model),
            "optimizer": self.optimizer,
            "criterion": self.criterion,
            "sampler": self.sampler,
            "progress": self.progress,
        }
        only_sometimes = {"scaler": self.accelerator.scaler, "average": self.average}  # the scaler: fp16
        return parts | {name: part for name, part in only_sometimes.items() if part is not None}

    def _save(self) -> None:
        """Writes a checkpoint, with the best weights so far in it, which makes it whole in itself."""
        progress, accelerator, folder = self.progress, self.accelerator, self.folder
        self._seconds()
        before = folder.checkpoint()
        if accelerator.is_main_process:
            folder.clear_partial()
        accelerator.wait_for_everyone()
        own = {"random": checkpoint.random_state(accelerator.device)}
        checkpoint.write(folder.partial / f"process-{accelerator.process_index}.pt", own)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shared = {name: part.state_dict() for name, part in self._parts().items()}
            checkpoint.write(folder.partial / "shared.pt", {"processes": accelerator.num_processes, **shared})
            best = folder.partial / folder.best.name
            if progress.best_epoch and progress.best_epoch == progress.epoch and progress.batch == 0:
                about = {"settings": json.dumps(asdict(self.settings)), "labels": json.dumps(self.corpus.labels)}
                save_model(best, accelerator.unwrap_model(self._scored), self.criterion.memory, about)
            elif before is not None and (before / best.name).exists():
                link(before / best.name, best)
            folder.commit(progress.epoch, progress.batch, progress.history)
        accelerator.wait_for_everyone()

    def _restore(self, newest: Path) -> None:
        accelerator = self.accelerator
        shared = checkpoint.read(newest / "shared.pt")
        if shared["processes"] != accelerator.num_processes:
            raise InputError(
                f"{newest} is the checkpoint of a run with {shared['processes']} processes; received "
                f"{accelerator.num_processes}. Continue with as many, or begin anew with --overwrite"
            )
        own = checkpoint.read(newest / f"process-{accelerator.process_index}.pt")
        for name, part in self._parts().items():
            part.load_state_dict(shared[name])
        checkpoint.set_random_state(own["random"], accelerator.device)
        if accelerator.is_main_process:
            self.folder.publish(newest, self.progress.history)
            tqdm.write(f"continuing after epoch {self.progress.epoch}, batch {self.progress.batch}")
        self.accelerator.wait_for_everyone()
        self.samples = self._epoch_samples(self.progress.epoch)

    # The end

    def _conclude(self) -> dict[str, Any]:
        """Scores the best weights on test, for the first and only time."""
        load_model(self.folder.best, self.accelerator.unwrap_model(self._scored), self.criterion.memory)
        samples = self._prompts(self.corpus.test).own_queries()
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
