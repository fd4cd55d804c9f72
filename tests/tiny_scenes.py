"""Scenes and a scorer for tests of what optimises openers."""

import torch

from data.scenes import Scene

FACTS = ["keeps bees", "is 71", "cannot swim", "bakes rye bread", "plays the tuba", "lost a glove"]
#: Prompts of several lengths, every second scene with a greeting.
SCENES = [Scene(f"s{i}", (FACTS[i % 6],) * (1 + i // 4), "Hello." if i % 2 else None) for i in range(12)]


class Likes:
    """A scorer of the same interface whose opinion is how often the response says one word."""

    def __init__(self, word="you"):
        self.word, self.model = word, torch.nn.Identity()

    def score(self, rows):
        counts = [float(row["response"].count(self.word)) for row in rows]
        return torch.tensor(counts), torch.ones(len(rows), 1)
