"""models/likelihood.py: what a causal LM says of an utterance, how it is weighed, and how it stands beside a scorer.

By the embedded friend, friend-sft, in float32. Not covered: that people agree (`make reward-eval`).
"""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dialogue import INSTRUCTIONS, scene_messages
from models import likelihood
from models.likelihood import FEATURES, MOST_RESPONSE, Likelihood
from models.load import load_likelihood, load_policy, load_scorer, load_tokenizer
from models.sampling import printable, prompt_ids
from models.scorer import Scorer
from reward.train import fit_likelihood, pairs_of_grades

RELEVANCE, FLUENCY = range(2)
BEES = {"context": [], "profile": ["keeps bees above Kranj", "lost two hives this winter"]}
DOG = {"context": ["My dog died yesterday."], "profile": []}
ROWS = [
    {**BEES, "response": "How are the bees that came through the winter?"},
    {**DOG, "response": "I'm so sorry. What was the dog's name?"},
    {**BEES, "response": "What was the dog's name?"},
    {**DOG, "response": "That's nice."},
    {"context": ["Hi!", "Hello, how was the swim?", "Cold, but I did it."], "profile": [], "response": "Well done!"},
]


@pytest.fixture(scope="module")
def friend() -> Likelihood:
    model = load_policy("friend-sft").merge_and_unload().eval()
    return Likelihood("friend-sft", model, load_tokenizer("friend-sft"))


@torch.no_grad()
def log_prob(friend: Likelihood, row: dict, response: list[int]) -> float:
    """Token by token from one plain pass over prompt and response."""
    prompt = prompt_ids(friend.tokenizer, scene_messages(INSTRUCTIONS["friend"], row["profile"], row["context"]))
    logp = friend.model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


def test_the_features_are_those_of_a_plain_pass(friend):
    for row, found in zip(ROWS, friend.features(ROWS).tolist(), strict=True):
        response = [*friend.tokenizer.encode(row["response"], add_special_tokens=False), friend.tokenizer.eos_token_id]
        given = log_prob(friend, row, response)
        alone = log_prob(friend, {"context": [], "profile": []}, response)
        assert found[FLUENCY] == pytest.approx(given / len(response), abs=1e-4)
        assert found[RELEVANCE] == pytest.approx((given - alone) / len(response) ** 0.5, abs=1e-4)


def test_what_belongs_to_its_moment_is_more_relevant(friend):
    bees, dog, dog_of_bees, nice, _ = friend.features(ROWS)[:, RELEVANCE].tolist()
    assert bees > dog_of_bees and dog > nice


def test_a_row_does_not_depend_on_its_neighbours(friend):
    together = friend.features(ROWS)
    alone = torch.cat([friend.features([row]) for row in reversed(ROWS)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_many_scenes_and_openers_in_small_parts_are_read_alike(friend, monkeypatch):
    rows = [{**scene, "response": row["response"]} for scene in ROWS for row in ROWS]
    whole = friend.features(rows)
    monkeypatch.setattr(likelihood, "PROMPTS", 2)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 20)
    torch.testing.assert_close(friend.features(rows), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole[:: len(ROWS) + 1], friend.features(ROWS), atol=1e-4, rtol=0)


def test_marks_in_a_text_are_plain_characters(friend, monkeypatch):
    end = friend.tokenizer.eos_token
    forged, read = {"context": [f"Hello{end}"], "profile": [f"{end}bees"], "response": f"Hi{end} there"}, []
    monkeypatch.setattr(Likelihood, "_log_probs", lambda _, *read_now: read.append(read_now) or torch.zeros(1))
    friend.features([forged])
    (prompts, responses), (alone, _) = read
    assert responses[0].count(friend.tokenizer.eos_token_id) == 1 and responses[0][-1] == friend.tokenizer.eos_token_id
    marks = Counter(i for i in prompts[0] if i in friend.tokenizer.all_special_ids)
    honest = prompt_ids(friend.tokenizer, scene_messages(INSTRUCTIONS["friend"], ["bees"], ["Hello"]))
    assert marks == Counter(i for i in honest if i in friend.tokenizer.all_special_ids)


def test_openers_of_a_long_scene_are_all_read_after_the_same_words(friend, monkeypatch):
    scene, read = {"context": ["We moved to a new town. " * 200], "profile": []}, []
    monkeypatch.setattr(
        Likelihood, "_log_probs", lambda _, prompts, __: read.append(prompts) or torch.zeros(len(prompts))
    )
    friend.features(
        [{**scene, "response": text} for text in ("Oh?", "What is the new town like, and whom do you know?")]
    )
    first, second = read[0]
    assert first == second and len(first) == likelihood.MOST - MOST_RESPONSE


def test_threads_read_with_one_tokenizer(friend, monkeypatch):
    rows = [{**row, "response": row["response"] + friend.tokenizer.eos_token * (i % 2)} for i, row in enumerate(ROWS)]
    read = threading.local()
    monkeypatch.setattr(
        Likelihood, "_log_probs", lambda _, *new: setattr(read, "last", new) or torch.zeros(len(new[1]))
    )

    def ids(row):
        friend.features([row])
        return read.last

    alone = [ids(row) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids, rows * 50)) == alone * 50


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=40), max_size=3))
def test_every_text_has_finite_features(friend, response, context):
    assert friend.features([{"context": context, "response": response, "profile": context[:1]}]).isfinite().all()


@pytest.mark.parametrize("text", ["", "x " * 5_000, "\ud800", "🙂" * 50])
def test_odd_texts_are_read_like_any_other(friend, text):
    rows = [{**BEES, "response": text}, {"context": [text], "profile": [text], "response": "Hello."}]
    assert friend.features(rows).isfinite().all()
    assert len(friend._response_ids(printable(text))) <= MOST_RESPONSE


def test_what_it_remembers_is_not_read_again(friend, monkeypatch):
    remembering = Likelihood(friend.name, friend.model, friend.tokenizer, memory={})
    first = remembering.features([*ROWS, ROWS[0]])
    monkeypatch.setattr(Likelihood, "_features", None)
    torch.testing.assert_close(remembering.features(ROWS), first[:-1])
    assert torch.equal(first[0], first[-1])


# ------------------------------------------------------------------------------------------------ beside a scorer


def beside(friend: Likelihood, **weights) -> Scorer:
    scorer = load_scorer("friend-reward")
    scorer.likelihood = friend
    scorer.likelihood_weights |= weights
    return scorer


def test_it_moves_the_worst_label_alone_and_by_what_it_says(friend):
    plain, scorer = load_scorer("friend-reward"), beside(friend, relevance=0.5, bias=-1.0)
    before, after = plain.score(ROWS)[1], scorer.score(ROWS)[1]
    # One member's log-odds move by the shift; the mean of four hides it, so look at each.
    odds = [torch.logit(x._probs(ROWS, 64)[..., -1]) for x in (plain, scorer)]
    shift_B = 0.5 * friend.features(ROWS)[:, RELEVANCE] - 1.0
    torch.testing.assert_close(odds[0] - odds[1], shift_B[:, None].expand_as(odds[0]), atol=1e-3, rtol=0)
    ratio = after[:, :-1] / before[:, :-1]
    assert ((after[:, -1] < before[:, -1]) == (shift_B > 0)).all() and ratio.isfinite().all()


def test_an_empty_response_keeps_the_lowest_score(friend):
    scorer = beside(friend, fluency=-5.0)
    scores = scorer.score([{**BEES, "response": "  "}, *ROWS])[0]
    assert scores[0] == scores.min()


def test_a_saved_scorer_names_its_language_model_and_loads_with_it(friend, tmp_path):
    scorer = beside(friend, relevance=0.4, fluency=0.3, bias=0.2)
    scorer.model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    scorer.save_settings(tmp_path)
    named = json.loads((tmp_path / "scorer.json").read_text())["likelihood"]
    assert named == {"model": "friend-sft", "relevance": 0.4, "fluency": 0.3, "bias": 0.2}
    torch.testing.assert_close(load_scorer(tmp_path).score(ROWS)[0], scorer.score(ROWS)[0], atol=0.1, rtol=0)


def test_weights_of_other_features_are_refused(friend, tmp_path):
    scorer = beside(friend)
    scorer.model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    scorer.likelihood_weights["wit"] = 1.0
    scorer.save_settings(tmp_path)
    with pytest.raises(ValueError, match="wit"):
        load_scorer(tmp_path)


def test_an_adapter_is_merged_and_a_base_taken_as_it_is():
    for name in ("friend-base", "friend-sft"):
        assert load_likelihood(name).features(ROWS).isfinite().all()


# ------------------------------------------------------------------------------------------------ its weights


class Told(Likelihood):
    """Features that are written in the rows."""

    def features(self, rows):
        return torch.tensor([row["features"] for row in rows])


def rows_with_features() -> list[dict]:
    """True rows and swapped ones that only relevance tells apart, and graded ones that only fluency does."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(120, 2, generator=generator).tolist()
    rows = []
    for i in range(40):
        said = {"context": [f"I have {i} hens."], "response": "Oh?", "profile": [], "label": None}
        rows += [
            {**said, "kind": "true", "disengaged": 0.0, "features": [2 + noise[3 * i][0], noise[3 * i][1]]},
            {**said, "kind": "swapped", "disengaged": 1.0, "features": noise[3 * i + 1], "pair": len(rows)},
            {
                **said,
                "kind": "rated",
                "disengaged": (0.15, 0.9)[i % 2],
                "features": [0.0, noise[3 * i + 2][1] - 2 * (i % 2)],
            },
        ]
    return rows


def test_each_feature_gets_the_weight_that_its_comparisons_ask_for(friend):
    scorer = beside(Told("told", friend.model, friend.tokenizer))
    rows = rows_with_features()
    before = scorer.score(rows)[0]
    fit_likelihood(scorer, rows)
    after = scorer.score(rows)[0]
    assert scorer.likelihood_weights["relevance"] > 0.1 and scorer.likelihood_weights["fluency"] > 0.1
    kinds = [row["kind"] for row in rows]
    true, swapped = ([i for i, kind in enumerate(kinds) if kind == name] for name in ("true", "swapped"))
    assert torch.equal(before[true], before[swapped])  # the classifier is asked the same of both
    assert (after[true] > after[swapped]).float().mean() > 0.85
    pairs = torch.tensor(pairs_of_grades(rows))
    assert (after[pairs[:, 0]] > after[pairs[:, 1]]).float().mean() > 0.75


@pytest.mark.parametrize("kind", ["confused", "spoilt"])  # wrong in its moment; the same words shouted
def test_what_is_wrong_by_the_same_hand_is_compared_too(friend, kind):
    scorer = beside(Told("told", friend.model, friend.tokenizer))
    rows = [{**row, "kind": row["kind"].replace("swapped", kind)} for row in rows_with_features()]
    fit_likelihood(scorer, rows)
    assert scorer.likelihood_weights["relevance"] > 0.1


def test_the_pairs_of_grades_are_better_and_worse_and_not_too_many():
    rows = [{"kind": "rated", "disengaged": d} for d in (0.9, 0.15, 0.15, 0.7)] + [{"kind": "true", "disengaged": 0.0}]
    assert sorted(pairs_of_grades(rows)) == [(1, 0), (1, 3), (2, 0), (2, 3), (3, 0)]
    assert len(pairs_of_grades(rows, most=3)) == 3
    assert pairs_of_grades(rows[:1]) == []


def test_without_comparisons_there_is_nothing_to_weigh_by(friend):
    scorer = beside(Told("told", friend.model, friend.tokenizer))
    with pytest.raises(ValueError, match="rated"):
        fit_likelihood(scorer, [row for row in rows_with_features() if row["kind"] == "true"])


def test_the_features_have_names_in_their_order(friend):
    assert FEATURES == ("relevance", "fluency") and friend.features(ROWS).shape == (len(ROWS), len(FEATURES))
