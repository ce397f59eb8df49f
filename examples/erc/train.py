"""Trains one model and scores it: settings, data, model, loss, epochs, dev, test.

The method `train_epoch` holds the loop and the call of the loss. Everything else is what surrounds it in a real
experiment: a curriculum, a fair choice of the best epoch, checkpoints, several processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from spcl_loss import (
    DifficultyCurriculumSampler,
    SupervisedPrototypicalContrastiveLoss,
    prototype_difficulty,
    supervised_prototypical_contrastive_loss,
)

from .data import Corpus, Dialogue
from .evaluate import Encoded, encode, heads, predict, progress_bar, reference_samples, score
from .files import InputError
from .folder import Checkpoints, Progress, RunFolder
from .inputs import Prompts, RandomShareSampler, Sample, Windows, collate, full_batches, length_buckets
from .model import CLIP_NORM, EmotionModel, load_encoder, load_model, loss_options, precision, rate_factor, save_model
from .report import difficulty_counts, environment, write_run
from .settings import Settings


def train(
    settings: Settings,
    corpus: Corpus,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 200,
) -> dict[str, Any]:
    """Trains and scores one model. All results lie in the folder `output`.

    Args:
        settings: what to do.
        corpus: what to learn from; its name must be `settings.dataset`.
        output: the run folder.
        resume: whether to continue the run that `output` holds, if there is one.
        overwrite: whether a run that `output` holds may be replaced.
        checkpoint_every: batches between checkpoints within an epoch.

    Returns:
        What result.json holds.
    """
    if corpus.name != settings.dataset:
        raise ValueError(f"corpus must be {settings.dataset}, as in the settings; received {corpus.name}")
    accelerator = Accelerator(mixed_precision=precision(settings))
    folder = RunFolder(output)
    if accelerator.is_main_process:
        folder.open(settings, resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()
    if (result := folder.stored_result()) is not None:
        return result
    corpus = corpus.first(settings.limit).part(settings.train_fraction, settings.seed)
    result = Training(settings, corpus, folder, accelerator, checkpoint_every).run()
    accelerator.free_memory()
    return result


class Training:
    """One run. Its methods stand in the order in which they happen."""

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        folder: RunFolder,
        accelerator: Accelerator,
        checkpoint_every: int,
    ) -> None:
        self.settings, self.corpus, self.folder, self.accelerator = settings, corpus, folder, accelerator
        self.checkpoint_every, self.clock = checkpoint_every, time.monotonic()
        set_seed(settings.seed)

        # The model: an encoder, and a linear head that may or may not train it.
        self.tokenizer, backbone = load_encoder(settings)
        num_classes, several = len(corpus.labels), accelerator.num_processes > 1
        model = EmotionModel(
            backbone,
            num_classes,
            head_trains_encoder=settings.head_trains_encoder,
            learns_prototypes=settings.objective in ("bcl", "eacl"),
        )
        if settings.freeze_embeddings:
            model.freeze_embeddings()
        optimizer = torch.optim.AdamW(model.parameter_groups(settings), fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model: EmotionModel = accelerator.unwrap_model(self.model)

        # The loss: its memory holds embeddings of every class, from which SPCL draws its prototypes.
        self.loss_options = {**loss_options(settings), "gather_distributed": several}
        self.criterion = SupervisedPrototypicalContrastiveLoss(
            num_classes,
            model.width,
            queue_size=settings.queue_size,
            support_size=settings.support_size,
            seed=settings.seed,
            **self.loss_options,
        ).to(accelerator.device)
        set_seed(settings.seed, device_specific=True)  # each process drops out other units

        # The data: every labelled turn is a sample. Dev and test are tokenised now, so that no fault comes late.
        self.train_inputs, dev, test = (self.lay_out(split) for split in (corpus.train, corpus.dev, corpus.test))
        self.dev, self.test = dev.own_queries(), test.own_queries()
        own = self.train_inputs.own_queries()
        for split, samples in (("train", own), ("dev", self.dev), ("test", self.test)):
            if not samples:
                raise InputError(f"the {split} split of {corpus.name} has no labelled turn")
        labels = [sample.label for sample in own]
        self.class_counts = np.bincount(labels, minlength=num_classes)
        self.reference = [own[i] for i in reference_samples(labels, settings.reference_turns, settings.seed)]
        self.class_weights = self.balanced_weights() if settings.class_weights else None
        self.samples = self.samples_of(epoch=0)
        self.sampler = self.make_sampler(len(self.samples))

        self.progress = Progress()
        parts = {"model": self.bare_model, "optimizer": self.optimizer, "criterion": self.criterion}
        if accelerator.scaler is not None:  # fp16
            parts["scaler"] = accelerator.scaler
        self.checkpoints = Checkpoints(folder, self.progress, {**parts, "sampler": self.sampler}, accelerator)

    def run(self) -> dict[str, Any]:
        newest = self.folder.checkpoint()
        if newest is None:
            self.begin_epoch()
            self.save(best=False)
        else:
            self.checkpoints.restore(newest)
            self.samples = self.samples_of(self.progress.epoch)
            self.say(f"continuing after epoch {self.progress.epoch}, batch {self.progress.batch}")
        while not self.finished():
            self.train_epoch()
            best = self.score_dev()
            if not self.finished():
                self.begin_epoch()
            self.save(best)
        return self.score_test()

    # The data of an epoch.

    def lay_out(self, dialogues: Sequence[Dialogue]) -> Windows | Prompts:
        kind = {"dialogues": Windows, "prompts": Prompts}[self.settings.inputs]
        sizes = {"context_turns": self.settings.context_turns, "max_length": self.settings.max_length}
        return kind(dialogues, self.tokenizer, **sizes)

    def samples_of(self, epoch: int) -> list[Sample]:
        """The epoch's samples: every turn's own query, then queries about past turns, drawn for the epoch."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return self.train_inputs.own_queries() + self.train_inputs.past_queries(generator)

    def make_sampler(self, size: int) -> DifficultyCurriculumSampler | RandomShareSampler:
        """Draws an epoch for all processes, which then share its batches."""
        settings = self.settings
        if settings.curriculum == "on":
            draw = "bernoulli" if settings.as_authors else "fixed"
            unknown = torch.zeros(size)  # difficulties come with the first epoch
            return DifficultyCurriculumSampler(
                unknown, num_epochs=settings.epochs, draw=draw, seed=settings.seed, num_replicas=1, rank=0
            )
        return RandomShareSampler(size, share={"all": 1.0, "half": 0.5}[settings.curriculum], seed=settings.seed)

    def begin_epoch(self) -> None:
        """Draws the epoch's samples, by their difficulty if there is a curriculum."""
        epoch = self.progress.epoch
        self.samples = self.samples_of(epoch)
        difficulty = None
        if self.needs_pass(epoch):
            # Encode the training set with the present weights: class means for the memory, difficulties.
            encoded = self.encode(self.samples, "the training set")
            features = torch.from_numpy(encoded.features).float().to(self.accelerator.device)
            labels = torch.from_numpy(encoded.labels).to(self.accelerator.device)
            self.criterion.memory.initialize(features, labels)
            difficulty = prototype_difficulty(features, labels).cpu()
        elif self.settings.curriculum == "on":
            difficulty = self.observed_difficulty()
        self.sampler.set_epoch(epoch, difficulty)
        if difficulty is not None:
            self.progress.difficulty = difficulty_counts(difficulty, self.sampler.indices)

    def needs_pass(self, epoch: int) -> bool:
        """Whether the epoch begins with a pass over its samples: the first one does, and with a curriculum others.

        In every second epoch the difficulties seen in training steps do as well, and cost nothing. Of several
        processes, each would know those of its own steps only.
        """
        if epoch == 0 or self.settings.curriculum != "on":
            return epoch == 0
        return self.settings.as_authors or self.accelerator.num_processes > 1 or epoch % 2 == 0

    def observed_difficulty(self) -> Tensor:
        """(n,) difficulties from the last training steps; a query about a past turn has the turn's own."""
        assert isinstance(self.sampler, DifficultyCurriculumSampler)
        own = {(sample.dialogue, sample.turn): i for i, sample in enumerate(self.train_inputs.own_queries())}
        return self.sampler.difficulty[[own[sample.dialogue, sample.turn] for sample in self.samples]]

    def batches(self) -> list[list[int]]:
        """This process's share of the epoch's batches, as places in `samples`; each process has as many."""
        settings, epoch = self.settings, self.progress.epoch
        drawn = self.sampler.indices.tolist()
        if settings.as_authors:
            batches = full_batches(drawn, settings.batch_size)
        else:
            seed = (settings.seed * 1_000_003 + epoch) * 4099
            batches = length_buckets(self.samples, drawn, settings.batch_size, seed)
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        share = len(batches) // processes
        return batches[process : share * processes : processes] or [batches[process % len(batches)]]

    def loader(self, batches: Sequence[list[int]]) -> Any:
        loader: DataLoader[Sample] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=partial(collate, padding=self.padding),
            generator=torch.Generator(),  # else a new loader advances the generator that dropout uses
        )
        # Accelerate's loader moves the batches to the device. Each process has its own batches already.
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)

    # An epoch of training.

    def train_epoch(self) -> None:
        progress, settings = self.progress, self.settings
        weight = 1.0 if settings.contrastive_weight is None else settings.contrastive_weight
        batches = self.batches()
        left = batches[progress.batch :]  # of an interrupted epoch
        sums = torch.tensor(progress.losses, device=self.accelerator.device)
        self.model.train()
        self.criterion.train()
        with self.bar(len(batches)) as bar:
            for members, batch in zip(left, self.loader(left), strict=True):
                features, scores = self.model(batch)
                contrastive = self.contrastive_loss(features, batch.labels)
                cross_entropy = F.cross_entropy(scores, batch.labels, weight=self.class_weights)
                self.accelerator.backward(weight * contrastive + cross_entropy)
                self.step(rate_factor(settings, progress.epoch, progress.batch, len(batches), progress.update))
                self.observe(members, features, batch.labels)

                sums += torch.stack([contrastive.detach(), cross_entropy.detach()])
                progress.batch += 1
                progress.update += 1
                bar.update()
                if progress.batch % 20 == 0:  # reading a loss waits for the device
                    means = (sums / progress.batch).tolist()
                    bar.set_postfix(contrastive=f"{means[0]:.3f}", cross_entropy=f"{means[1]:.3f}", refresh=False)
                if progress.batch < len(batches) and progress.batch % self.checkpoint_every == 0:
                    progress.losses = sums.tolist()
                    self.save(best=False)
        progress.losses = sums.tolist()

    def contrastive_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The objective's loss of a batch, (). Afterwards the memory holds the batch."""
        if self.settings.objective in ("supcon", "ce"):  # methods without prototypes: the memory serves the curriculum
            self.criterion.memory.update(features, labels)
            if self.settings.objective == "ce":
                return features.new_zeros(())
            return supervised_prototypical_contrastive_loss(features, labels, **self.loss_options)
        # SPCL and SPDCL draw prototypes from the memory, BCL and EACL learn them as parameters of the model.
        return self.criterion(features, labels, prototypes=self.bare_model.prototypes)

    def step(self, factor: float) -> None:
        """One update of the weights, at `factor` times the full learning rates."""
        encoder, everything = self.bare_model.backbone.parameters(), self.bare_model.named_parameters()
        if self.settings.as_authors:
            self.accelerator.clip_grad_norm_(self.bare_model.parameters(), CLIP_NORM)
        else:  # apart, so that large gradients of one part do not scale down the other's
            self.accelerator.clip_grad_norm_(encoder, CLIP_NORM)
            rest = [parameter for name, parameter in everything if not name.startswith("backbone.")]
            torch.nn.utils.clip_grad_norm_(rest, CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def observe(self, members: list[int], features: Tensor, labels: Tensor) -> None:
        """Notes the difficulties of a step's samples if the next epoch will use them."""
        if self.settings.curriculum == "on" and not self.settings.as_authors and self.accelerator.num_processes == 1:
            assert isinstance(self.sampler, DifficultyCurriculumSampler)
            self.sampler.observe(torch.tensor(members), features.detach(), labels, *self.criterion.memory.centroids())

    # Dev, by which the best epoch is chosen. Every arm and every epoch is scored in the same way: with the present
    # weights in evaluation mode, and with class means and fitted heads from the same training turns.

    def score_dev(self) -> bool:
        """Scores the epoch that ends here, and returns whether it is the best so far."""
        progress, selects_by = self.progress, self.settings.selects_by
        guesses = self.predict({"dev": self.dev})["dev"]
        scores = {head: self.score(self.dev, guess) for head, guess in guesses.items()}
        contrastive, cross_entropy = (total / max(1, progress.batch) for total in progress.losses)
        before = progress.history[progress.best_epoch - 1] if progress.best_epoch else None
        best = before is None or scores[selects_by]["weighted_f1"] > before["dev"][selects_by]["weighted_f1"]
        progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, [0.0, 0.0]
        line = {
            "epoch": progress.epoch,
            "updates": progress.update,
            "samples": len(self.sampler),
            "seconds": self.seconds(),
            "contrastive_loss": contrastive,
            "cross_entropy": cross_entropy,
            "dev": scores,
            "difficulty": progress.difficulty,
        }
        progress.history.append(line)
        if best:
            progress.best_epoch = progress.epoch
        dev = ", ".join(f"{head} {scores[head]['weighted_f1']:.4f}" for head in scores)
        self.say(
            f"epoch {progress.epoch}/{self.settings.epochs}: contrastive loss {contrastive:.3f}, cross-entropy "
            f"{cross_entropy:.3f}, {line['seconds']:.0f} s, dev weighted-F1: {dev}"
        )
        return best

    def predict(self, splits: dict[str, list[Sample]]) -> dict[str, dict[str, np.ndarray]]:
        """Predicted classes (n,) by split and head, with the present weights."""
        head = self.bare_model.head
        weight, bias = (parameter.detach().double().cpu().numpy() for parameter in (head.weight, head.bias))
        every_head = heads(weight, bias, self.class_counts, self.settings.temperature)
        train = self.encode(self.reference, "training turns")
        return {name: predict(every_head, train, self.encode(samples, name)) for name, samples in splits.items()}

    def score(self, samples: Sequence[Sample], guess: np.ndarray) -> dict[str, Any]:
        return score(np.array([sample.label for sample in samples]), guess, self.corpus.labels)

    def encode(self, samples: Sequence[Sample], what: str) -> Encoded:
        size = 4 * self.settings.batch_size  # nothing is kept for a backward pass
        return encode(self.model, samples, self.accelerator, padding=self.padding, batch_size=size, what=what)

    def finished(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        tired = patience is not None and progress.epoch - progress.best_epoch >= patience
        return tired or progress.epoch >= self.settings.epochs

    # Test, scored once, with the weights of the best epoch.

    def score_test(self) -> dict[str, Any]:
        load_model(self.folder.best, self.bare_model)
        splits = {"dev": self.dev, "test": self.test}
        guesses = self.predict(splits)
        settings, progress = self.settings, self.progress
        result = {
            "dataset": self.corpus.name,
            "encoder": settings.encoder,
            "objective": settings.objective,
            "contrastive_weight": settings.contrastive_weight,
            "curriculum": settings.curriculum,
            "seed": settings.seed,
            "train_samples": int(self.class_counts.sum()),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "selected_by": settings.selects_by,
            "seconds": self.seconds(),
            "precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
            "environment": environment(),
            **{
                split: {head: self.score(samples, guess) for head, guess in guesses[split].items()}
                for split, samples in splits.items()
            },
        }
        if self.accelerator.is_main_process:
            write_run(self.folder, result, progress.history, self.corpus.labels, splits, guesses)
            self.folder.drop_checkpoints()
        self.accelerator.wait_for_everyone()
        return result

    # Small things.

    @property
    def padding(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def balanced_weights(self) -> Tensor:
        """(C,) inverse class sizes, 1 on average over the samples; 0 for a class without any."""
        counts = torch.from_numpy(self.class_counts).float()
        weights = counts.sum() / (counts > 0).sum() / counts
        return torch.where(counts > 0, weights, 0.0).to(self.accelerator.device)

    def save(self, best: bool) -> None:
        """Writes a checkpoint, with the present weights as the best ones if `best`."""
        self.seconds()
        about = {"settings": json.dumps(asdict(self.settings)), "labels": json.dumps(self.corpus.labels)}
        self.checkpoints.save(partial(save_model, model=self.bare_model, about=about) if best else None)

    def seconds(self) -> float:
        """Since the run began, without interruptions."""
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        return self.progress.seconds

    def bar(self, batches: int) -> tqdm[Any]:
        return progress_bar(
            total=batches,
            initial=self.progress.batch,
            desc=f"epoch {self.progress.epoch + 1}/{self.settings.epochs}",
            unit="batch",
            shown=self.accelerator.is_main_process,
        )

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)
