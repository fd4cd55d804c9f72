"""The order in which a Trainer reads its rows."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochOrder(LengthGroupedSampler):
    """Rows of like length share a batch, in an order that is a function of seed and epoch alone.

    transformers draws the order from the global random state, which a resumed run has no longer at its epoch's start: it
    would read some rows twice and others never. The Trainer calls `set_epoch` before each epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self.seed + epoch)
