"""Labels of each source -> reactions, and what each reaction is worth.

The reward predicts how the other person takes an utterance: DailyDialog's seven emotions as shown by their *next*
turn, or `disengaged` (they have nothing to say to it). The engagement of an utterance is the sum of the reactions'
probabilities times these weights; it is a judgement, written down here and nowhere else.
"""

from data.dialogue import EMOTIONS
from models.scorer import TEXT_WEIGHTS

DISENGAGED = "disengaged"
REACTIONS = (*EMOTIONS, DISENGAGED)

#: reaction -> (weight, why). The ends are .98 and .02, not 1 and 0: no reaction makes it certain that somebody goes
#: on or leaves, and so the logit stays within 3.9 of 0 without a clamp, under which all bad openers would be equal.
REACTION_WEIGHTS = {
    "happiness": (0.98, "they enjoy the talk: what the friend is for"),
    "surprise": (0.9, "curiosity: something new was said, and surprise asks for more; less sure to be pleasant"),
    "sadness": (0.6, "they open up and are heard, which a friend wants; but it is not what an opener should cause"),
    "neutral": (0.5, "the talk goes on without a sign either way: the middle of the scale"),
    "fear": (0.4, "they share a worry, which is trust; or the friend has alarmed them: just below the middle"),
    "anger": (0.15, "mostly at something, at times at the friend; they answer, but want the talk to end"),
    "disgust": (0.05, "they turn away from what was said"),
    DISENGAGED: (0.02, "nothing to say to it: the opener failed, whatever it felt like"),
}

#: The probability that the other one was disengaged, by a rating of what was said (1 to 5)...
RATED = {1: 0.9, 2: 0.7, 3: 0.45, 4: 0.15, 5: 0.0}
#: ... and where their short neutral answer ended the talk.
ENDS = 0.6

#: GoEmotions' 28 labels -> the seven: the authors' own Ekman grouping (Demszky et al. 2020, section 5.3), whose joy is
#: our happiness. Its surprise holds realisation, confusion and curiosity too.
GO_EMOTIONS = {
    label: group
    for group, labels in {
        "neutral": "neutral",
        "anger": "anger annoyance disapproval",
        "disgust": "disgust",
        "fear": "fear nervousness",
        "happiness": "joy admiration amusement approval caring desire excitement gratitude love optimism pride relief",
        "sadness": "sadness disappointment embarrassment grief remorse",
        "surprise": "surprise confusion curiosity realization",
    }.items()
    for label in labels.split()
}


def labels_and_weights(preset: str) -> tuple[list[str], list[float]]:
    """Labels in the order of the logits, and their weights, of preset `reaction` or `text`."""
    if preset == "reaction":
        return list(REACTIONS), [REACTION_WEIGHTS[label][0] for label in REACTIONS]
    return list(EMOTIONS), [TEXT_WEIGHTS[label] for label in EMOTIONS]
