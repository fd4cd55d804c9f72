"""The order in which a Trainer reads its rows."""

from collections.abc import Iterator
from itertools import chain

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochOrder(LengthGroupedSampler):
    """Rows of like length share a batch, in an order that is a function of seed and epoch alone.

    transformers draws the order from the global random state, which a resumed run has no longer at its epoch's start: it
    would read some rows twice and others never. Its batches also come sorted, fifty at a time from the longest to the
    shortest, so that a mixture's sources follow each other in waves; here they are shuffled, but for the first, which
    holds the longest row: what does not fit into memory shows at once. `set_epoch` is called before each epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        last = batches.pop() if len(batches[-1]) < self.batch_size else []  # in the middle it would shift the others
        first, rest = batches[:1], batches[1:]
        return chain(*first, *(rest[i] for i in torch.randperm(len(rest), generator=self.generator)), last)


class ReadsInOrder:
    """Mixed into a Trainer: it reads its rows in `EpochOrder`, also where it goes on amid an epoch."""

    order: EpochOrder

    def in_order(self, lengths: list[int], batch_size: int) -> EpochOrder:
        self.order = EpochOrder(lengths, batch_size, self.args.seed)
        return self.order

    def _run_epoch(self, *, epoch, **settings):
        self.order.set_epoch(epoch)  # a loader of several processes that skips what was read does not pass it on
        return super()._run_epoch(epoch=epoch, **settings)
