"""The trainer of sentence-transformers: a loss with its interface, and a curriculum in batches grouped by label.

python examples/integrations/sentence_transformers_trainer.py
torchrun --nproc-per-node 2 examples/integrations/sentence_transformers_trainer.py

Name a folder as an argument to save checkpoints there, and to continue from the last one.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty

EPOCHS, BATCH_SIZE, CLASSES, WIDTH = 3, 8, 4, 8
SAVE_EVERY = 5  # training steps
# A text is a number and one of 20 clue words. A class has five clue words.
NUMBERS, CLUES = [f"number{n}" for n in range(203)], [f"clue{c}" for c in range(20)]
TEXTS = [f"{number} {CLUES[n % 20]}" for n, number in enumerate(NUMBERS)]
LABELS = [n % CLASSES for n in range(len(TEXTS))]


def make_model() -> SentenceTransformer:
    words = [*NUMBERS, *CLUES, "unknown"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=WIDTH)], device="cpu")


class SentenceLoss(nn.Module):
    """The trainer calls a loss with the tokens of each text column. It may replace `model` by a wrapped one."""

    def __init__(self, model: nn.Module, spcl: nn.Module) -> None:
        super().__init__()
        self.model, self.spcl = model, spcl

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (tokens,) = sentence_features
        return self.spcl(self.model(tokens)["sentence_embedding"], labels)


class CurriculumBatches(DefaultBatchSampler):
    """The sampler's epoch in batches that hold two samples of each of several labels, while the labels last."""

    def __init__(self, sampler: DifficultyCurriculumSampler, labels: list[int], **options: Any) -> None:
        super().__init__(sampler, **options)
        self.labels = labels

    def __iter__(self) -> Iterator[list[int]]:
        met: Counter[int] = Counter()
        turns = {}
        for index in self.sampler.indices.tolist():
            label = self.labels[index]
            turns[index] = met[label] // 2, label
            met[label] += 1
        grouped = sorted(turns, key=turns.get)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield grouped[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size


class CurriculumTrainer(SentenceTransformerTrainer):
    curriculum: DifficultyCurriculumSampler

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> CurriculumBatches:
        return CurriculumBatches(self.curriculum, dataset["label"], batch_size=batch_size, drop_last=drop_last)


class CurriculumCallback(TrainerCallback):
    """Sets the sampler's epochs. Saves and restores the loss and the sampler with the trainer's checkpoints."""

    def __init__(self, spcl: nn.Module, sampler: DifficultyCurriculumSampler) -> None:
        self.spcl, self.sampler = spcl, sampler

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step > 0:
            saved = torch.load(self._path(args, state), map_location="cpu", weights_only=True)
            self.spcl.load_state_dict(saved["loss"])
            self.sampler.load_state_dict(saved["sampler"])

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes files of its own
        if state.is_world_process_zero:
            # Position 0, because the trainer itself skips the batches that this epoch has trained on.
            saved = {"loss": self.spcl.state_dict(), "sampler": self.sampler.state_dict(position=0)}
            unfinished = self._path(args, state).with_suffix(".part")
            torch.save(saved, unfinished)
            unfinished.replace(self._path(args, state))

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "curriculum.pt"


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. `curriculum.pt` is its last file: a kill while saving leaves a folder without it."""
    numbers = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*/curriculum.pt")]
    steps = [int(number) for number in numbers if number.isdecimal()]  # another may be a copy that someone keeps
    return str(folder / f"checkpoint-{max(steps)}") if steps else None


def train(folder: Path) -> tuple[SentenceTransformer, SupervisedPrototypicalContrastiveLoss]:
    model = make_model()
    data = Dataset.from_dict({"text": TEXTS, "label": LABELS})
    embeddings = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False).cpu()
    difficulty = prototype_difficulty(embeddings, torch.tensor(LABELS))
    # This trainer deals whole batches to the processes, so each process's sampler draws the whole epoch.
    sampler = DifficultyCurriculumSampler(difficulty, num_epochs=EPOCHS, num_replicas=1, rank=0)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=0.1,
        save_steps=SAVE_EVERY,
        dataloader_drop_last=True,  # else one process may get one batch more than another, and wait for it in vain
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    spcl = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=True)
    loss, callback = SentenceLoss(model, spcl), CurriculumCallback(spcl, sampler)
    trainer = CurriculumTrainer(model=model, args=args, train_dataset=data, loss=loss, callbacks=[callback])
    trainer.curriculum = sampler
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    return model, spcl


@torch.no_grad()
def accuracy(model: SentenceTransformer, spcl: SupervisedPrototypicalContrastiveLoss) -> float:
    """The share of new texts whose nearest prototype is that of their class."""
    texts = [f"unknown {clue}" for clue in CLUES]
    embeddings = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    predicted = spcl.predict(embeddings.to(spcl.memory.queue.device)).cpu()
    return (predicted == torch.arange(len(texts)) % CLASSES).float().mean().item()


if __name__ == "__main__":
    model, spcl = train(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f"accuracy on new texts: {accuracy(model, spcl):.2f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
