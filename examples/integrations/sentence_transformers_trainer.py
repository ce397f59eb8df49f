"""The trainer of sentence-transformers: a loss with its interface, and label-grouped batches of a curriculum.

torchrun --nproc-per-node 2 examples/integrations/sentence_transformers_trainer.py runs/sentences
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_trainer import CurriculumCallback
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from toy import BATCH_SIZE, CLASSES, EPOCHS, SAVE_EVERY, WIDTH, Points, Record, main
from transformers.trainer_utils import get_last_checkpoint

from spcl_loss import DifficultyCurriculumSampler, SupervisedPrototypicalContrastiveLoss, prototype_difficulty


class SentenceLoss(nn.Module):
    """The trainer calls a loss with the tokens of each text column, and puts its own wrapping of the model in."""

    def __init__(self, model: nn.Module, spcl: nn.Module, sampler: DifficultyCurriculumSampler, record: Record) -> None:
        super().__init__()
        self.model, self.spcl, self.sampler, self.record = model, spcl, sampler, record

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (tokens,) = sentence_features
        self.record(self.sampler.epoch, tokens["input_ids"])  # a text here is one word, whose id is its index
        return self.spcl(self.model(tokens)["sentence_embedding"], labels)


class CurriculumBatches(DefaultBatchSampler):
    """The sampler's epoch in batches that hold two samples of each of several labels, as far as the labels last."""

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


def train(folder: Path, record: Record) -> tuple[nn.Module, nn.Module]:
    points = Points()
    words = {f"word{index}": index for index in range(len(points))}
    data = Dataset.from_dict({"text": list(words), "label": points.labels.tolist()})
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=WIDTH)], device="cpu")

    # Here the trainer deals whole batches to the processes, so the sampler gives all of the epoch to each of them.
    difficulty = prototype_difficulty(points.inputs, points.labels)
    sampler = DifficultyCurriculumSampler(difficulty, num_epochs=EPOCHS, num_replicas=1, rank=0)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=0.01,
        save_steps=SAVE_EVERY,
        dataloader_drop_last=True,  # else one process may get a batch more than another, and wait for it in vain
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    spcl = SupervisedPrototypicalContrastiveLoss(CLASSES, WIDTH, gather_distributed=args.world_size > 1)
    loss, callback = SentenceLoss(model, spcl, sampler, record), CurriculumCallback(spcl, sampler)
    trainer = CurriculumTrainer(model=model, args=args, train_dataset=data, loss=loss, callbacks=[callback])
    trainer.curriculum = sampler
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    return model, spcl


if __name__ == "__main__":
    main(train)
