"""Trains one model and scores it. `Training.train_epoch` is the loop that calls the loss."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from spcl_loss import (
    SupervisedPrototypicalContrastiveLoss,
    prototype_difficulty,
    supervised_prototypical_contrastive_loss,
)

from .batches import Epochs
from .data import Corpus
from .evaluate import Encoded, Guesses, Heads, encode, progress_bar, reference_samples, score
from .files import InputError
from .folder import Progress, RunFolder, atomically, restore_checkpoint, save_checkpoint
from .inputs import Sample, collate, lay_out
from .model import CLIP_NORM, EmotionModel, load_encoder, loss_options, new_accelerator, rate_factor
from .report import Run, environment, write_run
from .settings import Settings

CHECKPOINT_EVERY = 200  # batches; there is one after every epoch too


def train(
    settings: Settings, corpus: Corpus, output: str | Path, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains and scores one model. Returns what result.json holds.

    If the folder `output` already holds a run, `resume` continues it and `overwrite` replaces it. Without either, this
    is an InputError. Several processes use the folder that the first one names.
    """
    if resume and overwrite:
        raise ValueError("expected at most one of resume and overwrite; received both")
    if corpus.name != settings.dataset:
        raise ValueError(f"corpus must be {settings.dataset}, as in the settings; received {corpus.name}")
    accelerator = new_accelerator(settings)
    folder = RunFolder(broadcast_object_list([str(output)])[0])
    with folder.locked() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            folder.open(settings, resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        if (result := folder.stored_result()) is not None:
            return result
        corpus = corpus.first(settings.limit).part(settings.train_fraction, settings.seed)
        result = Training(settings, corpus, folder, accelerator).run()
        accelerator.free_memory()
        return result


class Training:
    """One run. Its methods are in the order of their calls."""

    def __init__(self, settings: Settings, corpus: Corpus, folder: RunFolder, accelerator: Accelerator) -> None:
        self.settings, self.corpus, self.folder, self.accelerator = settings, corpus, folder, accelerator
        self.began = time.monotonic()
        set_seed(settings.seed)

        # The model: an encoder and a linear head. The head's cross-entropy trains the encoder only if asked to.
        tokenizer, backbone = load_encoder(settings)
        num_classes = len(corpus.labels)
        model = EmotionModel(backbone, num_classes, settings)
        optimizer = torch.optim.AdamW(model.parameter_groups(settings), fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model: EmotionModel = accelerator.unwrap_model(self.model)

        # The loss: its memory holds embeddings of every class, from which SPCL draws its prototypes.
        self.loss_options = {**loss_options(settings), "gather_distributed": accelerator.num_processes > 1}
        memory = {"queue_size": settings.queue_size, "support_size": settings.support_size, "seed": settings.seed}
        criterion = SupervisedPrototypicalContrastiveLoss(num_classes, model.width, **memory, **self.loss_options)
        self.criterion = criterion.to(accelerator.device)
        set_seed(settings.seed, device_specific=True)  # dropout differs between processes

        # The data: every labelled turn is a sample. Dev and test are tokenised now, so that their faults show at once.
        inputs = {split: lay_out(getattr(corpus, split), tokenizer, settings) for split in ("train", "dev", "test")}
        for split, laid_out in inputs.items():
            if not laid_out.samples:
                raise InputError(f"the {split} split of {corpus.name} has no labelled turn")
        self.dev, self.test = inputs["dev"].samples, inputs["test"].samples
        self.data = Epochs(settings, inputs["train"], accelerator.num_processes, accelerator.process_index)
        labels = [sample.label for sample in self.data.own]
        self.class_counts = np.bincount(labels, minlength=num_classes)
        self.reference = [self.data.own[i] for i in reference_samples(labels, settings.reference_turns, settings.seed)]

        self.progress = Progress()
        parts = {"model": self.bare_model, "optimizer": self.optimizer, "criterion": self.criterion}
        parts |= {"sampler": self.data.sampler, "scaler": accelerator.scaler}  # None without curriculum; without fp16
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def run(self) -> dict[str, Any]:
        if checkpoints := self.folder.checkpoints():
            restore_checkpoint(checkpoints[-1], self.progress, self.parts, self.accelerator)
            self.began -= self.progress.seconds
            self.data.prepare(self.progress.epoch)
            self.accelerator.print(f"continuing after epoch {self.progress.epoch}, batch {self.progress.batch}")
        else:
            self.begin_epoch()
            self.save()
        while not self.finished():
            self.train_epoch()
            self.score_dev()
            if not self.finished():
                self.begin_epoch()
            self.save()
        return self.score_test()

    # The data of an epoch.

    def begin_epoch(self) -> None:
        """Draws the epoch's samples, by their difficulty if there is a curriculum."""
        epoch, data = self.progress.epoch, self.data
        data.prepare(epoch)
        if data.needs_pass(epoch):
            # Encode the training set with the present weights: class means for the memory, difficulties.
            encoded = self.encode(data.samples, "the training set")
            features = torch.from_numpy(encoded.features).float().to(self.accelerator.device)
            labels = torch.from_numpy(encoded.labels).to(self.accelerator.device)
            self.criterion.memory.initialize(features, labels)
            difficulty = prototype_difficulty(features, labels).cpu()
        elif data.sampler is not None:
            difficulty = data.observed()
        if data.sampler is not None:
            data.sampler.set_epoch(epoch, difficulty)
            drawn = difficulty[data.sampler.indices]
            self.progress.difficulty = {"all": float(difficulty.mean()), "drawn": float(drawn.mean())}

    # An epoch of training.

    def train_epoch(self) -> None:
        progress, settings = self.progress, self.settings
        weight = 1.0 if settings.contrastive_weight is None else settings.contrastive_weight
        batches = self.data.batches()
        sums = torch.tensor(progress.losses, device=self.accelerator.device)
        self.model.train()
        self.criterion.train()
        with progress_bar(
            total=len(batches), initial=progress.batch, desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
            unit="batch", shown=self.accelerator.is_main_process,
        ) as bar:  # fmt: skip
            for members in batches[progress.batch :]:  # all of them, unless the epoch was interrupted
                batch = send_to_device(collate([self.data.samples[i] for i in members]), self.accelerator.device)
                features, scores = self.model(batch)
                if self.data.observes:  # for the epochs to come, before the loss puts the batch into the centroids
                    places, centroids = torch.tensor(members), self.criterion.memory.centroids()
                    self.data.sampler.observe(places, features.detach(), batch.labels, *centroids)
                contrastive = self.contrastive_loss(features, batch.labels)
                cross_entropy = F.cross_entropy(scores, batch.labels)
                self.accelerator.backward(weight * contrastive + cross_entropy)
                self.step(rate_factor(settings, progress.epoch, progress.batch, len(batches), progress.update))

                sums += torch.stack([contrastive.detach(), cross_entropy.detach()])
                progress.batch += 1
                progress.update += 1
                bar.update()
                if progress.batch % 20 == 0:  # reading a loss waits for the device
                    means = (sums / progress.batch).tolist()
                    bar.set_postfix(contrastive=f"{means[0]:.3f}", cross_entropy=f"{means[1]:.3f}", refresh=False)
                if progress.batch < len(batches) and progress.batch % CHECKPOINT_EVERY == 0:
                    progress.losses = sums.tolist()
                    self.save()
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
        rest = [parameter for name, parameter in everything if not name.startswith("backbone.")]
        # Ours are clipped apart, so that large gradients of one part do not scale down the other's.
        self.accelerator.unscale_gradients()
        for part in [self.bare_model.parameters()] if self.settings.as_authors else [encoder, rest]:
            torch.nn.utils.clip_grad_norm_(part, CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    # Dev chooses the best epoch. Every arm and every epoch is scored in the same way: with the present weights in
    # evaluation mode, and with class means and fitted heads from the same training turns.

    def score_dev(self) -> None:
        """Scores the epoch that ends here, and keeps its weights if it is the best so far."""
        progress, selects_by = self.progress, self.settings.selects_by
        _, all_scores, train = self.evaluate({"dev": self.dev})
        scores = all_scores["dev"]
        contrastive, cross_entropy = (total / max(1, progress.batch) for total in progress.losses)
        progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, [0.0, 0.0]
        line = {
            "epoch": progress.epoch, "updates": progress.update, "samples": len(self.data.indices),
            "seconds": time.monotonic() - self.began, "contrastive_loss": contrastive, "cross_entropy": cross_entropy,
            "dev": scores, "difficulty": progress.difficulty, "diagnostics": self.diagnose(train),
        }  # fmt: skip
        progress.history.append(line)
        best = max(progress.history, key=lambda line: line["dev"][selects_by]["weighted_f1"])  # the first of equals
        progress.best_epoch = best["epoch"]
        if best is line and self.accelerator.is_main_process:
            weights = {name: value.cpu().contiguous() for name, value in self.bare_model.state_dict().items()}
            atomically(self.folder.best_of(progress.epoch), partial(save_file, weights))
        dev = ", ".join(f"{head} {scores[head]['weighted_f1']:.4f}" for head in scores)
        self.accelerator.print(
            f"epoch {progress.epoch}/{self.settings.epochs}: contrastive loss {contrastive:.3f}, cross-entropy "
            f"{cross_entropy:.3f}, {line['seconds']:.0f} s, dev weighted-F1: {dev}"
        )

    def evaluate(self, splits: dict[str, list[Sample]]) -> tuple[Guesses, dict[str, Any], Encoded]:
        """Predicted classes and scores of splits by head, with the present weights; and the encoded training turns."""
        heads = Heads(self.bare_model.head, self.class_counts, self.settings.temperature)
        train = self.encode(self.reference, "training turns")
        guesses, scores = {}, {}
        for name, samples in splits.items():
            split = self.encode(samples, name)
            guesses[name] = heads.predict(train, split.features)
            scores[name] = {head: score(split.labels, own, self.corpus.labels) for head, own in guesses[name].items()}
        return guesses, scores, train

    def diagnose(self, train: Encoded) -> dict[str, Any]:
        """What the loss sees in the training turns, all of them in one batch, in evaluation mode."""
        device, process = self.accelerator.device, self.accelerator.process_index
        own = slice(process, None, self.accelerator.num_processes)
        features = torch.from_numpy(train.features[own]).float().to(device)
        labels = torch.from_numpy(train.labels[own]).to(device)
        self.criterion.eval()
        found = self.criterion.diagnostics(features, labels, prototypes=self.bare_model.prototypes)
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return {name: np.where(np.isnan(array), None, array).tolist() for name, array in arrays.items()}  # for JSON

    def encode(self, samples: Sequence[Sample], what: str) -> Encoded:
        return encode(self.model, samples, self.accelerator, self.settings.batch_size, what)

    def finished(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        stops_early = patience is not None and progress.epoch - progress.best_epoch >= patience
        return stops_early or progress.epoch >= self.settings.epochs

    # Test, scored once, with the weights of the best epoch.

    def score_test(self) -> dict[str, Any]:
        self.bare_model.load_state_dict(load_file(self.folder.best_of(self.progress.best_epoch)))
        splits = {"dev": self.dev, "test": self.test}
        guesses, scores, train = self.evaluate(splits)
        settings, progress = self.settings, self.progress
        arm = ("encoder", "objective", "contrastive_weight", "curriculum", "train_fraction", "seed")
        result = {
            "dataset": self.corpus.name,
            **{name: getattr(settings, name) for name in arm},
            "train_samples": int(self.class_counts.sum()),
            "epochs": progress.epoch, "best_epoch": progress.best_epoch, "selected_by": settings.selects_by,
            "seconds": time.monotonic() - self.began, "precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes, "environment": environment(), **scores,
        }  # fmt: skip
        if self.accelerator.is_main_process:
            # For predictions on new dialogues: what the heads are fitted on.
            reference = {"features": train.features, "labels": train.labels, "class_counts": self.class_counts}
            atomically(self.folder.reference, partial(safetensors.numpy.save_file, reference))
            write_run(Run(self.folder, settings, result), self.corpus.labels, splits, guesses)
        self.accelerator.wait_for_everyone()
        return result

    def save(self) -> None:
        """Writes a checkpoint."""
        self.progress.seconds = time.monotonic() - self.began  # without the pause before a continuation
        save_checkpoint(self.folder, self.progress, self.parts, self.accelerator)
