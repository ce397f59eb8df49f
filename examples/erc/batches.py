"""Which training samples an epoch holds, and the batches in which samples are encoded."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from spcl_loss import DifficultyCurriculumSampler

from .inputs import Prompts, Sample, Windows, group_by_input
from .settings import Settings

POOL = 50  # batches that are sorted by length together: enough for little padding, few enough for random batches


class Epochs:
    """The training set epoch by epoch: `prepare` makes an epoch's samples, `indices` are those that it trains on."""

    def __init__(self, settings: Settings, inputs: Windows | Prompts, processes: int, process: int) -> None:
        self.settings, self.inputs, self.processes, self.process = settings, inputs, processes, process
        self.own = inputs.samples
        self.prepare(0)
        self.sampler: DifficultyCurriculumSampler | None = None
        if settings.curriculum == "on":
            self.sampler = DifficultyCurriculumSampler(
                torch.zeros(len(self.samples)),  # difficulties come with the first epoch
                num_epochs=settings.epochs,
                draw="bernoulli" if settings.as_authors else "fixed",
                seed=settings.seed,
                num_replicas=1,  # the epoch's batches, not its samples, are shared among the processes
                rank=0,
            )

    def prepare(self, epoch: int) -> None:
        """Makes the epoch's samples: every turn's own query, then queries about past turns, drawn for the epoch."""
        self.seed = self.settings.seed * 1_000_003 + epoch
        generator = torch.Generator().manual_seed(self.seed)
        self.samples = self.own + self.inputs.past_queries(generator)

    @property
    def indices(self) -> Tensor:
        """Indices into `samples` of those that the epoch trains on, in the order drawn."""
        if self.sampler is not None:
            return self.sampler.indices
        drawn = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.seed))
        return drawn if self.settings.curriculum == "all" else drawn[: max(1, len(drawn) // 2)]

    def needs_pass(self, epoch: int) -> bool:
        """Whether the epoch begins with a pass that encodes its samples.

        The first epoch does, and every epoch of the authors. With a curriculum others do too, to measure difficulties.
        Every second epoch uses those of the training steps instead, where there are any: they cost nothing.
        """
        measures = self.settings.curriculum == "on" and not (self.observes and epoch % 2 == 1)
        return epoch == 0 or self.settings.as_authors or measures

    @property
    def observes(self) -> bool:
        """Whether training steps measure difficulties. With several processes, each would know only its own steps."""
        return self.settings.curriculum == "on" and not self.settings.as_authors and self.processes == 1

    def observed(self) -> Tensor:
        """(n,) difficulties from the last training steps. A query about a past turn has the difficulty of that turn."""
        own = {(sample.dialogue, sample.turn): i for i, sample in enumerate(self.own)}
        return self.sampler.difficulty[[own[sample.dialogue, sample.turn] for sample in self.samples]]

    def batches(self) -> list[list[int]]:
        """This process's share of the epoch's batches, as indices into `samples`. All processes have equally many."""
        settings, drawn = self.settings, self.indices.tolist()
        if settings.as_authors:
            # As there, batches keep the order of the samples, and the samples beyond the last full batch are dropped.
            size = settings.batch_size
            batches = [drawn[i : i + size] for i in range(0, max(1, len(drawn) - size + 1), size)]
        else:
            batches = length_buckets(self.samples, drawn, settings.batch_size, seed=4099 * self.seed)
        share = len(batches) // self.processes
        own = batches[self.process : share * self.processes : self.processes]
        return own or [batches[self.process % len(batches)]]


def length_buckets(samples: Sequence[Sample], indices: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of samples of like length, in random order.

    The samples are cut into pools of `POOL` batches; each pool is sorted by length and cut into batches. Samples that
    share an input stay together, so a batch may have more than `batch_size` of them.
    """
    batches = []
    for pool in _cut(group_by_input(samples, indices), POOL * batch_size):
        pool.sort(key=lambda group: max(samples[index].length for index in group))
        batches += [list(chain.from_iterable(groups)) for groups in _cut(pool, batch_size)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order.tolist()]


def longest_first(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Batches of like length for a pass in any order. The longest comes first, so that a lack of memory shows early."""
    groups = group_by_input(samples, range(len(samples)))
    groups.sort(key=lambda group: -max(samples[index].length for index in group))
    return [list(chain.from_iterable(batch)) for batch in _cut(groups, batch_size)]


def _cut(groups: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """The groups in runs of at least `size` members; the last may have fewer."""
    runs: list[list[list[int]]] = []
    room = 0
    for group in groups:
        if room <= 0:
            runs.append([])
            room = size
        runs[-1].append(group)
        room -= len(group)
    return runs
