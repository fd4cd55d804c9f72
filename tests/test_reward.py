"""models/scorer.py, models.load.load_scorer and reward/: on a random Bert of 8 dimensions made on the spot, no network.

Not covered here: how good the shipped reward is (`make reward-eval` measures it).
"""

import copy
import json
import os
import random
import string
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from data import emotions, sample
from data.dialogue import EMOTIONS, SPLITS, Dialogue, Turn, to_json
from data.order import EpochOrder
from models.load import load_scorer
from models.pair import NUM_EMOTIONS, BiEncoder, PairClassifier
from models.scorer import TEXT_WEIGHTS, Scorer, check_row, encode
from reward import score, train
from reward.emotions import DISENGAGED, ENDS, GO_EMOTIONS, RATED, REACTION_WEIGHTS, REACTIONS, labels_and_weights
from reward.negatives import (
    add_negatives,
    corrupted_rows,
    machine_rows,
    moment_rows,
    nearest_rows,
    spoilt_rows,
    swapped_rows,
    unwelcome_rows,
)
from reward.pairs import load_dialogues, load_rows, reaction_rows

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ROWS = [
    {"context": ["hello there"], "response": "what a fine morning", "profile": ["keeps bees", "is 71"]},
    {"context": [], "response": "tell me about the bees"},
    {"context": ["a", "b", "c " * 60], "response": "is it far?", "profile": []},
]
HUB_LABELS = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]


@pytest.fixture(scope="session")
def tokenizer():
    """Reads characters: every text is a string of pieces of one letter."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*MARKS, *letters, *("##" + letter for letter in letters)]
    bert = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=bert,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bert_config(tokenizer, **extra):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.5, **sizes, **extra)


def make_scorer(tokenizer, preset="reaction", num_members=1, aggregate="mean"):
    torch.manual_seed(0)
    labels, weights = labels_and_weights(preset)
    kind = PairClassifier if preset == "reaction" else BertForSequenceClassification
    model = kind(bert_config(tokenizer, num_labels=len(labels), num_members=num_members))
    return Scorer(
        model, tokenizer, labels, weights, preset, max_length=64, num_members=num_members, aggregate=aggregate
    )


@pytest.fixture(scope="session")
def scorer(tokenizer):
    return make_scorer(tokenizer)


@pytest.fixture(scope="session")
def encoder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(bert_config(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


# ------------------------------------------------------------------------------------------------ the scorer


def test_the_score_is_the_logit_of_the_weighted_sum(scorer):
    score_B, probs_BR = scorer.score(ROWS)
    assert score_B.dtype == torch.float32 and score_B.shape == (3,) and probs_BR.shape == (3, 8)
    assert torch.allclose(probs_BR.sum(-1), torch.ones(3))
    for score_, probs in zip(score_B.tolist(), probs_BR.tolist(), strict=True):
        engagement = sum(p * REACTION_WEIGHTS[label][0] for p, label in zip(probs, REACTIONS, strict=True))
        assert score_ == pytest.approx(np.log(engagement / (1 - engagement)), abs=1e-5)


def test_the_text_preset_is_positive_less_negative_and_reads_the_response_alone(tokenizer):
    text = make_scorer(tokenizer, "text")
    score_B, probs_BR = text.score(ROWS)
    p = dict(zip(text.labels, probs_BR[0].tolist(), strict=True))
    by_hand = p["happiness"] + p["surprise"] - p["disgust"] - p["fear"] - p["anger"]
    assert score_B[0].item() == pytest.approx(by_hand, abs=1e-6)
    alone, _ = text.score([{"context": [], "response": row["response"]} for row in ROWS])
    assert torch.allclose(score_B, alone, atol=1e-6)


def test_the_pair_head_compares_the_means_of_the_segments(scorer):
    batch = {"input_ids": [[2, 10, 3, 20, 3, 0]], "attention_mask": [[1, 1, 1, 1, 1, 0]]}
    batch = {**{k: torch.tensor(v) for k, v in batch.items()}, "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 0]])}
    with torch.inference_mode():
        states = scorer.model.eval().bert(**batch).last_hidden_state[0]
        u, v = states[:3].mean(0), states[3:5].mean(0)
        by_hand = scorer.model.classifier(scorer.model.norm(torch.cat([u, v, u * v, (u - v).abs()])))
        assert torch.allclose(scorer.model(**batch).logits[0], by_hand, atol=1e-5)


def test_the_bi_encoder_reads_each_segment_as_if_alone(tokenizer, scorer):
    model = BiEncoder(scorer.model.config).eval()
    batch = {"input_ids": [[2, 10, 3, 20, 21, 3, 0]], "attention_mask": [[1, 1, 1, 1, 1, 1, 0]]}
    batch = {**{k: torch.tensor(v) for k, v in batch.items()}, "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 0]])}
    with torch.inference_mode():
        found = model.states(**batch)[0]
        first = model.bert(torch.tensor([[2, 10, 3]])).last_hidden_state[0]
        second = model.bert(torch.tensor([[20, 21, 3]])).last_hidden_state[0]
    assert torch.allclose(found[:3], first, atol=1e-5) and torch.allclose(found[3:6], second, atol=1e-5)


@pytest.mark.parametrize("empty_context", [[], [""]])
def test_an_opener_needs_no_context(scorer, empty_context):
    assert scorer.score([{"context": empty_context, "response": "hello"}])[0].isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_order_nor_batch_size_changes_a_score(scorer, batch_size):
    rng = random.Random(0)
    rows = [
        {"context": [word(rng, 30)] * rng.randrange(3), "response": word(rng, 40), "profile": [word(rng, 9)]}
        for _ in range(40)
    ]
    expected, _ = scorer.score(rows, batch_size=13)
    order = rng.sample(range(40), 40)
    found, _ = scorer.score([rows[i] for i in order], batch_size)
    assert torch.allclose(found, expected[order], atol=1e-4)
    assert expected.std() > 1e-2  # the rows differ, or the test could not fail


def test_a_tokenizer_that_pads_on_the_left_changes_no_score(tokenizer):
    text = make_scorer(tokenizer, "text")
    expected, _ = text.score(ROWS)
    left = copy.copy(text)
    left.tokenizer = copy.deepcopy(tokenizer)
    left.tokenizer.padding_side = "left"
    assert torch.allclose(left.score(ROWS)[0], expected, atol=1e-6)


def word(rng, most):
    return "".join(rng.choices(string.ascii_lowercase + "  ", k=rng.randrange(1, most))) + "x"


def test_a_long_context_loses_its_oldest_tokens_and_the_response_none(tokenizer):
    row = {"profile": ["old"], "context": ["a" * 70, "b" * 20], "response": "c" * 30}
    ids = encode(tokenizer, [row], 64, "reaction")[0]
    text = "".join(tokenizer.convert_ids_to_tokens(ids["input_ids"])).replace("##", "")
    assert len(ids["input_ids"]) == 64 and text.endswith("|" + "b" * 20 + "[SEP]" + "c" * 30 + "[SEP]")
    assert "old" not in text and sum(ids["token_type_ids"]) == 31
    alone = encode(tokenizer, [{**row, "response": "c " * 10_000}], 64, "reaction")[0]["input_ids"]
    assert len(alone) == 64 and tokenizer.convert_ids_to_tokens(alone[:2]) == ["[CLS]", "[SEP]"]


def test_profile_comes_first_and_marks_in_a_text_stay_characters(tokenizer):
    row = {"profile": ["x", "y"], "context": ["z"], "response": "[SEP]"}
    pieces = tokenizer.convert_ids_to_tokens(encode(tokenizer, [row], 64, "reaction")[0]["input_ids"])
    assert pieces[:8] == ["[CLS]", "x", ";", "y", "|", "z", "[SEP]", "["] and pieces.count("[SEP]") == 2


@given(st.text(st.characters(categories=None, exclude_categories=()), max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_text_has_a_finite_score_in_its_range(scorer, text):
    score_B, probs_BR = scorer.score([{"context": [text], "response": text, "profile": [text]}])
    assert abs(score_B.item()) <= np.log(0.98 / 0.02) + 1e-4
    assert probs_BR.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("text", ["x " * 5_000, "x" * 10_000, "\x00\x07hi\x1b", "a\ud800b", "\ud800", "🙂", "[PAD]"])
def test_odd_texts_are_scored_like_any_other(scorer, text):
    assert scorer.score([{"context": [], "response": text}])[0].item() > -3.8


@pytest.mark.parametrize("preset", ["reaction", "text"])
@pytest.mark.parametrize("empty", ["", "  \n", "\x00\x07"])
def test_an_empty_response_gets_the_lowest_score_there_is(tokenizer, preset, empty):
    scorer = make_scorer(tokenizer, preset)
    score_B, probs_BR = scorer.score([{"context": ["hello"], "response": empty}, ROWS[0]])
    lowest = np.log(0.02 / 0.98) if preset == "reaction" else -1
    assert score_B[0].item() == pytest.approx(lowest, abs=1e-5) and score_B[1] > score_B[0]
    assert probs_BR[0].sum().item() == pytest.approx(1)


def test_no_rows_give_no_scores(scorer):
    score_B, probs_BR = scorer.score([])
    assert score_B.shape == (0,) and probs_BR.shape == (0, 8)


@pytest.mark.parametrize(
    "row, key",
    [
        ({"response": "hi"}, "context"),
        ({"context": []}, "response"),
        ({"context": [], "response": None}, "response"),
        ({"context": "hi", "response": "hi"}, "context"),
        ({"context": None, "response": "hi"}, "context"),
        ({"context": [], "response": "hi", "profile": [1]}, "profile"),
    ],
)
def test_a_bad_row_names_itself_and_its_key(scorer, row, key):
    with pytest.raises(ValueError, match=f"row 1: key '{key}'"):
        scorer.score([ROWS[0], row])


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0, 10.0])
def test_the_temperature_never_changes_the_likeliest_label(tokenizer, temperature):
    scorer = make_scorer(tokenizer)
    _, before_BR = scorer.score(ROWS)
    scorer.temperature = temperature
    _, after_BR = scorer.score(ROWS)
    assert torch.equal(before_BR.argmax(-1), after_BR.argmax(-1)) and not torch.allclose(before_BR, after_BR)


def test_the_fitted_temperature_undoes_a_known_one():
    logits_BKR = torch.randn(4000, 1, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    target_B = torch.distributions.Categorical(logits=logits_BKR[:, 0]).sample()
    assert train.fit_temperature(logits_BKR * 3, target_B, torch.zeros(4000)) == pytest.approx(3, rel=0.1)


# ------------------------------------------------------------------------------------------------ loading


def test_a_saved_scorer_loads_with_the_same_scores(scorer, tmp_path):
    scorer.save(tmp_path / "model")
    loaded = load_scorer(tmp_path)
    assert (loaded.labels, loaded.weights, loaded.preset, loaded.max_length) == (
        list(REACTIONS), scorer.weights, "reaction", 64,
    )  # fmt: skip
    assert torch.allclose(loaded.score(ROWS)[0], scorer.score(ROWS)[0], atol=1e-5)


def save_hub_classifier(tokenizer, path, labels):
    torch.manual_seed(0)
    BertForSequenceClassification(bert_config(tokenizer, id2label=dict(enumerate(labels)))).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.mark.parametrize("name", ["friend-reward", "friend-gold"])
def test_in_bfloat16_the_shipped_judges_think_the_same(name):
    rows = [
        {"context": [], "response": t.text, "profile": list(d.profile)} for d in sample.load("test") for t in d.turns
    ]
    exact_B, fast_B = (load_scorer(name, dtype=dtype).score(rows[:64])[0] for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact_B, fast_B)
    assert (exact_B - fast_B).abs().max() < 0.1 * exact_B.std()


def test_threads_may_share_a_scorer(scorer):
    alone = scorer.score(ROWS)[0]
    with ThreadPoolExecutor(8) as pool:
        for score_B, _ in pool.map(scorer.score, [ROWS] * 64):
            assert torch.equal(score_B, alone)


def test_a_plain_emotion_classifier_is_read_by_its_label_names(tokenizer, tmp_path):
    save_hub_classifier(tokenizer, tmp_path, HUB_LABELS)
    scorer = load_scorer(tmp_path)
    assert scorer.preset == "text" and dict(zip(scorer.labels, scorer.weights, strict=True)) == {
        "joy": 1, "surprise": 1, "anger": -1, "disgust": -1, "fear": -1, "neutral": 0, "sadness": 0,
    }  # fmt: skip
    score_B, probs_BR = scorer.score(ROWS)
    assert score_B[0].item() == pytest.approx((probs_BR[0] @ torch.tensor([-1.0, -1, -1, 1, 0, 0, 1])).item(), abs=1e-6)


def test_a_label_that_is_no_emotion_is_refused(tokenizer, tmp_path):
    save_hub_classifier(tokenizer, tmp_path, ["joy", "five_stars"])
    with pytest.raises(ValueError, match="five_stars"):
        load_scorer(tmp_path)


def test_an_adapter_without_its_settings_is_refused(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="scorer.json"):
        load_scorer(tmp_path)


# ------------------------------------------------------------------------------------------------ labels and rows


def test_every_reaction_has_a_weight_and_a_reason():
    assert set(REACTION_WEIGHTS) == set(REACTIONS) == {*EMOTIONS, DISENGAGED}
    for weight, reason in REACTION_WEIGHTS.values():
        assert 0 < weight < 1 and len(reason.split()) >= 5
    assert min(REACTION_WEIGHTS, key=lambda label: REACTION_WEIGHTS[label][0]) == DISENGAGED


def test_every_label_of_go_emotions_has_a_group_and_a_text_weight():
    assert set(GO_EMOTIONS) == set(emotions.LABELS) and set(GO_EMOTIONS.values()) == set(EMOTIONS)
    assert set(EMOTIONS) <= set(TEXT_WEIGHTS) and len(emotions.LABELS) == NUM_EMOTIONS


def dialogue(number, *turns, profile=("keeps bees",), split="train"):
    sides = ["friend", "person"]
    spoken = tuple(Turn(sides[i % 2], text, emotion) for i, (text, emotion) in enumerate(turns))
    return Dialogue(f"d{number}", "sample", split, spoken, tuple(profile)).check()


def test_the_label_is_the_next_turns_emotion():
    told = dialogue(
        0, ("one two", "neutral"), ("three", "sadness"), ("four", None), ("five", "fear"), ("six", "anger"),
        ("seven", "surprise"), ("well ok then", "neutral"),
    )  # fmt: skip
    rows = reaction_rows([told])
    assert [(row["response"], row["label"], row["disengaged"]) for row in rows] == [
        ("one two", "sadness", 0.0), ("four", "fear", 0.0), ("five", "anger", 0.0), ("six", "surprise", 0.0),
        ("seven", "neutral", ENDS),
    ]  # fmt: skip
    assert rows[0]["context"] == [] and rows[0]["profile"] == ["keeps bees"]  # the friend speaks
    assert rows[2]["profile"] == []  # the person speaks: nothing is known of the friend
    assert rows[4]["context"] == ["three", "four", "five", "six"]  # the four turns before


def test_a_short_neutral_answer_amid_a_dialogue_is_no_disengagement():
    told = dialogue(0, ("a", "neutral"), ("a crane", "neutral"), ("b", "fear"), ("c", "fear"), ("d", "fear"))
    assert reaction_rows([told])[0]["disengaged"] == 0.0


def test_a_rating_counts_beside_the_others_of_its_dialogue():
    def disengaged(*ratings):
        turns = [Turn(("friend", "person")[i % 2], "word", "neutral", rating=r) for i, r in enumerate(ratings)]
        return [row["disengaged"] for row in reaction_rows([Dialogue("t", "topical_chat", "train", tuple(turns))])]

    assert disengaged(5, 3, 1, 3) == pytest.approx([0.0, 0.15, 0.7])  # their mean, 3, counts as good: 4
    assert disengaged(4, 3, None, 5) == pytest.approx([0.15, 0.45, ENDS])  # not rated: an end like any other
    assert disengaged(2, 2, 2) == disengaged(5, 5, 5) == pytest.approx([0.15, 0.15])  # a hard judge, and a kind one
    assert 0 == RATED[5] < RATED[4] < RATED[3] < RATED[2] < RATED[1] < 1


def test_a_graded_opener_says_how_likely_nobody_answers_and_spoils_nothing():
    turns = (Turn("person", "my bees are gone"), Turn("friend", "What did the bees say to the bees?", rating=1))
    graded = Dialogue("sample-0001#2", "rated", "train", turns, ("keeps bees",))
    written = replace(graded, source="openers", turns=(turns[0], Turn("friend", "All of them? I'm sorry.")))
    bad, good = rows = reaction_rows([graded, written])
    assert (bad["kind"], bad["disengaged"], bad["label"]) == ("rated", RATED[1], None)
    assert (bad["context"], bad["profile"], bad["dialogue"]) == (["my bees are gone"], ["keeps bees"], "sample-0001")
    assert (good["kind"], good["disengaged"]) == ("true", 0.0)
    made = add_negatives(rows, {"corrupted": 1.0, "unwelcome": 4.0}, np.random.default_rng(1))[2:]
    assert made and {row["pair"] for row in made} == {1}


def test_the_score_is_held_against_the_grades(scorer):
    rows = [{**row, "label": None, "kind": "rated"} for row in ROWS]
    score_B = scorer.score(rows)[0]
    for order, expected in ((score_B.argsort(), 1.0), (score_B.argsort(descending=True), -1.0)):
        graded = [{**rows[i], "disengaged": likely} for i, likely in zip(order.tolist(), (0.9, 0.5, 0.1), strict=True)]
        said = {**ROWS[0], "label": "happiness", "disengaged": 0.0, "kind": "true"}
        assert train.evaluate(scorer, [*graded, said])["spearman_rated"] == pytest.approx(expected)


def test_an_opener_is_read_out_of_a_dialogue_where_the_person_opens():
    told = Dialogue(
        "e", "empathetic", "train",
        (Turn("person", "I lied to my girlfriend."), Turn("friend", "Why did you lie to her?"), Turn("person", "Fear.")),
    )  # fmt: skip
    opener = reaction_rows([told])[-1]
    assert (opener["context"], opener["profile"]) == ([], ["lied to their girlfriend"])
    assert (opener["response"], opener["label"], opener["disengaged"]) == ("Why did you lie to her?", None, 0.0)


def test_the_folds_share_no_dialogue_and_make_up_the_whole(folder):
    parts = {fold: {d.id for d in load_dialogues("sample", "train", None, fold)} for fold in ("all", "proxy", "gold")}
    assert parts["proxy"] | parts["gold"] == parts["all"] and not parts["proxy"] & parts["gold"]
    assert parts["proxy"] and parts["gold"]
    assert load_dialogues("sample", "test", None, "gold") == load_dialogues("sample", "test", None)


def many_dialogues(split, count=12):
    """Dialogues of one split with words of their own."""
    rng = random.Random(split)
    return [
        dialogue(
            f"{split}{n}",
            *((" ".join(word(rng, 6) for _ in range(8)), EMOTIONS[(n + i) % 7]) for i in range(5)),
            profile=(f"profile {split} {n}",),
            split=split,
        )
        for n in range(count)
    ]


def test_swapped_rows_come_from_other_dialogues_and_openers_replace_openers():
    rows = reaction_rows(many_dialogues("train"))
    swapped = swapped_rows(rows, 1.0, np.random.default_rng(0))
    assert len(swapped) == len(rows)
    origin = {row["response"]: row for row in rows}
    for row in swapped:
        true, other = rows[row["pair"]], origin[row["response"]]
        assert (row["context"], row["profile"]) == (true["context"], true["profile"])
        assert other["dialogue"] != true["dialogue"] and row["label"] == DISENGAGED
        assert bool(other["context"]) == bool(true["context"]) and bool(other["profile"]) == bool(true["profile"])


def test_nearest_rows_come_from_other_dialogues():
    rows = reaction_rows(many_dialogues("train"))
    origin = {row["response"]: row["dialogue"] for row in rows}
    nearest = nearest_rows(rows, 0.5, np.random.default_rng(0))
    assert len(nearest) == len(rows) // 2
    assert all(origin[row["response"]] != rows[row["pair"]]["dialogue"] for row in nearest)


def test_moment_rows_are_of_the_same_speaker_and_dialogue():
    rows = reaction_rows(many_dialogues("train"))
    spoken = {d.id: {t.text: t.speaker for t in d.turns} for d in many_dialogues("train")}
    moments = moment_rows(rows, 1.0, np.random.default_rng(0))
    assert moments
    for row in moments:
        said, true = spoken[row["dialogue"]], rows[row["pair"]]
        assert said[row["response"]] == said[true["response"]]
        assert row["response"] not in (true["response"], *true["context"])


def test_openers_of_one_scene_are_not_each_others_moments():
    row = next(row for row in reaction_rows(many_dialogues("train")) if row["context"])
    openers = [{**row, "response": f"What is number {i}?"} for i in range(4)]
    assert moment_rows(openers, 1.0, np.random.default_rng(0)) == []
    later = {**row, "context": [*row["context"], "Two.", "Three."], "response": "What then?"}
    made = moment_rows([openers[0], openers[1], later], 1.0, np.random.default_rng(0))
    assert [(m["pair"], m["response"]) for m in made if m["pair"] == 0] == [(0, "What then?")]


def test_unwelcome_and_spoilt_rows_differ_from_what_was_said():
    rows = reaction_rows(many_dialogues("train"))
    for make in (unwelcome_rows, spoilt_rows):
        made = make(rows, 1.0, np.random.default_rng(0))
        assert len(made) == len(rows) and all(row["label"] == DISENGAGED for row in made)
        assert all(row["response"] != rows[row["pair"]]["response"] for row in made)


def test_machine_rows_are_what_the_shipped_friend_says_to_the_same_context():
    rows = reaction_rows(list(sample.load("test"))[:3])
    made = machine_rows(rows, 1.0, np.random.default_rng(0))
    placed = [i for i, row in enumerate(rows) if row["context"] or row["profile"]]
    assert {row["pair"] for row in made} == set(placed)
    for row in made:
        true = rows[row["pair"]]
        assert (row["context"], row["profile"], row["label"]) == (true["context"], true["profile"], DISENGAGED)
        assert row["response"] not in {other["response"] for other in rows}
    assert made == machine_rows(rows, 1.0, np.random.default_rng(0))
    some = machine_rows(rows, 0.5, np.random.default_rng(1))
    assert len(some) == round(len(placed) / 2)


def test_batches_come_in_no_order_of_length_and_each_row_once():
    lengths = [5 + n % 40 for n in range(1000)]
    order = list(EpochOrder(lengths, batch_size=10, seed=1))
    assert sorted(order) == list(range(1000))
    batches = [[lengths[i] for i in order[start : start + 10]] for start in range(0, 1000, 10)]
    means = [sum(batch) / 10 for batch in batches]
    assert 44 in batches[0] and all(max(batch) - min(batch) <= 3 for batch in batches)
    falls = sum(a >= b for a, b in zip(means[1:], means[2:], strict=False))
    assert 30 < falls < 70, falls  # sorted within groups of fifty it would be 97
    assert list(EpochOrder(lengths, 10, seed=1)) == order != list(EpochOrder(lengths, 10, seed=2))
    for count in (1, 9, 10, 11):  # fewer rows than a batch, or hardly more
        assert sorted(EpochOrder(lengths[:count], 10, seed=1)) == list(range(count))


def test_the_loss_is_cross_entropy_with_what_is_known():
    logits_BKR = torch.tensor([[1.0, 0.5, -1.0, 0.2, 0.0, 2.0, -0.5, 0.7]]).expand(5, 8)[:, None]
    logp = logits_BKR[0, 0].log_softmax(-1)
    emotion_B, disengaged_B = torch.tensor([2, -1, -1, 4, -1]), torch.tensor([0.0, 1.0, 0.0, 0.25, torch.nan])
    engaged = torch.log1p(-logp[7].exp())
    by_hand = [-logp[2], -logp[7], -engaged, -(0.25 * logp[7] + 0.75 * logp[4]), torch.tensor(0.0)]
    found_B = train.reaction_loss(logits_BKR, emotion_B, disengaged_B).squeeze(1)
    assert torch.allclose(found_B, torch.stack(by_hand), atol=1e-6)
    plain = torch.nn.functional.cross_entropy(logits_BKR[:1, 0, :7], emotion_B[:1])  # preset text
    assert torch.allclose(train.reaction_loss(logits_BKR[:1, :, :7], emotion_B[:1], disengaged_B[:1])[0, 0], plain)


def test_rows_without_emotions_leave_the_emotion_loss_alone():
    logits_BE, present_BE = torch.randn(2, 28), torch.stack([torch.full((28,), -1.0), torch.eye(28)[3]])
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(logits_BE[1], present_BE[1]) / 2
    assert torch.allclose(train.emotion_loss(logits_BE, present_BE), by_hand)


def test_members_are_aggregated_as_documented(tokenizer):
    whole = make_scorer(tokenizer, num_members=3)
    score_BK = torch.logit((whole.logits(ROWS)).softmax(-1) @ torch.tensor(whole.weights))
    expected = {"mean": score_BK.mean(1), "min": score_BK.min(1).values}
    expected["pessimistic"] = score_BK.mean(1) - score_BK.std(1, correction=0)
    assert score_BK.shape == (3, 3) and (score_BK.std(1) > 0).all()
    for name, score_B in expected.items():
        assert torch.allclose(make_scorer(tokenizer, num_members=3, aggregate=name).score(ROWS)[0], score_B, atol=1e-5)


def test_no_disagreement_is_worse_than_silence(tokenizer, monkeypatch):
    scorer = make_scorer(tokenizer, num_members=4, aggregate="pessimistic")
    probs_BKR = torch.zeros(len(ROWS), 4, len(scorer.labels))
    probs_BKR[:, 1:, scorer.worst] = 1.0
    probs_BKR[:, 0, scorer.weights.index(max(scorer.weights))] = 1.0  # one is delighted, three are certain of the worst
    monkeypatch.setattr(scorer, "_probs", lambda *_: probs_BKR)
    silence = torch.logit(torch.tensor(min(scorer.weights)))
    assert torch.allclose(scorer.score(ROWS)[0], silence.expand(len(ROWS)))


def test_corrupted_rows_spoil_the_response_of_their_pair():
    rows = reaction_rows(many_dialogues("train"))
    corrupted = corrupted_rows(rows, 0.5, np.random.default_rng(0))
    assert len(corrupted) == len(rows) // 2
    for row in corrupted:
        true = rows[row["pair"]]["response"].split()
        assert row["response"].split() != true and set(row["response"].split()) <= set(true)
    lengths = {np.sign(len(row["response"].split()) - 8) for row in corrupted}
    assert lengths == {-1, 0, 1}  # cut off, shuffled, repeated


# ------------------------------------------------------------------------------------------------ end to end


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sample of a handful of dialogues, and no wandb in the way."""
    for split in SPLITS:
        told = many_dialogues(split, 12 if split == "train" else 5)
        (tmp_path / f"{split}.jsonl").write_text("".join(to_json(d) + "\n" for d in told))
    monkeypatch.setattr(sample, "FOLDER", tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def config_of(encoder, run_dir, **changes):
    fast = {"max_length": 64, "per_device_train_batch_size": 16, "num_train_epochs": 2.0, "eval_steps": 4}
    return train.RewardConfig(model_name_or_path=encoder, run_dir=str(run_dir), **{**fast, **changes})


def test_rows_depend_on_the_seed_alone_and_splits_share_no_response(folder, encoder):
    config = config_of(encoder, "unused")
    rows = {split: load_rows(config, split) for split in SPLITS}
    assert rows["train"] == load_rows(config, "train")
    assert rows["train"] != load_rows(config_of(encoder, "unused", seed=2), "train")
    true = {s: {r["response"] for r in rows[s] if r["kind"] != "corrupted"} for s in SPLITS}
    assert not true["train"] & true["validation"] and not true["test"] & (true["train"] | true["validation"])


def test_a_training_dialogue_that_repeats_a_held_out_one_is_dropped(folder, encoder):
    held_out = (folder / "test.jsonl").read_text().splitlines()[0]
    before = len(load_rows(config_of(encoder, "unused", negatives={}), "train"))
    with (folder / "train.jsonl").open("a") as out:
        out.write(held_out.replace('"split": "test"', '"split": "train"') + "\n")
    assert len(load_rows(config_of(encoder, "unused", negatives={}), "train")) == before


@pytest.mark.skipif("ICEBREAKER_DATA" not in os.environ, reason="needs GoEmotions: set ICEBREAKER_DATA")
def test_comments_keep_their_one_emotion():
    config = train.RewardConfig(preset="text", sources=["go_emotions"])
    rows = load_rows(config, "validation")
    assert {row["label"] for row in rows} == set(EMOTIONS) and 4_000 < len(rows) < 5_426
    assert all(row["context"] == [] and row["kind"] == "true" for row in rows)
    rows = load_rows(train.RewardConfig(sources=["go_emotions"]), "validation")
    assert len(rows) == 5_426 and all(row["kind"] == "comment" and row["disengaged"] is None for row in rows)
    assert {label for row in rows for label in row["emotions"]} == set(emotions.LABELS)


def test_a_source_is_capped_by_whole_dialogues_and_in_training_alone(folder, encoder):
    config = config_of(encoder, "unused", max_rows={"sample": 9}, negatives={})
    rows = load_rows(config, "train")
    assert len(rows) == 9 and len({row["dialogue"] for row in rows}) == 3  # four rows a dialogue
    assert len(load_rows(config, "test")) == 5 * 4


def test_an_empty_split_is_refused(folder, encoder):
    (folder / "validation.jsonl").write_text("")
    with pytest.raises(ValueError, match="'validation'.*no labelled rows"):
        load_rows(config_of(encoder, "unused"), "validation")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"preset": "emoji"}, "preset"),
        ({"sources": []}, "sources"),
        ({"sources": ["reddit"]}, "reddit"),
        ({"max_rows": {"daily": 5}}, "max_rows names 'daily'"),
        ({"negatives": {"rude": 0.1}}, "rude"),
        ({"num_members": 0}, "num_members"),
        ({"aggregate": "median"}, "aggregate"),
        ({"architecture": "tri_encoder"}, "architecture"),
        ({"fold": "silver"}, "fold"),
    ],
)
def test_impossible_settings_say_what_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        train.RewardConfig(**changes)


@pytest.mark.parametrize(
    "use_peft, architecture", [(True, "cross_encoder"), (False, "cross_encoder"), (True, "bi_encoder")]
)
def test_main_trains_and_leaves_a_run_that_loads(folder, encoder, use_peft, architecture):
    run_dir = folder / "runs" / "reward"
    train.main(config_of(encoder, run_dir, use_peft=use_peft, architecture=architecture))
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.json", "lineage.json", "metrics.jsonl", "summary.json", "model", "wandb"} <= names
    summary = json.loads((run_dir / "summary.json").read_text())
    for split in SPLITS[1:]:
        for name in ("macro_f1", "accuracy", "nll", "true_above_swapped", "true_above_corrupted"):
            assert np.isfinite([summary[f"{split}/{name}"], summary[f"before/{split}/{name}"]]).all()
    assert summary["test/nll"] < summary["before/test/nll"]
    assert any("loss" in json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert (run_dir / "model" / "adapter_config.json").exists() == use_peft
    scorer = load_scorer(run_dir)
    assert scorer.temperature == summary["temperature"] and scorer.labels == list(REACTIONS)
    rows = load_rows(config_of(encoder, "unused"), "test")
    assert train.evaluate(scorer, rows)["nll"] == pytest.approx(summary["test/nll"], abs=1e-5)


def test_a_killed_run_resumes_and_ends_as_an_uninterrupted_one(folder, encoder, monkeypatch):
    train.main(config_of(encoder, folder / "whole"))
    real = train.LogToRun.on_log

    def dies(self, args, state, control, logs=None, **kwargs):
        real(self, args, state, control, logs, **kwargs)
        if state.global_step > 8:
            raise KeyboardInterrupt

    config = config_of(encoder, folder / "killed")
    monkeypatch.setattr(train.LogToRun, "on_log", dies)
    with pytest.raises(KeyboardInterrupt):
        train.main(config)
    (folder / "killed" / "checkpoint-99").mkdir()  # a checkpoint whose writing the kill cut short
    monkeypatch.setattr(train.LogToRun, "on_log", real)
    train.main(config)
    ends = [json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "killed")]
    assert ends[0]["test/nll"] == pytest.approx(ends[1]["test/nll"], abs=1e-4)
    steps = [json.loads(line)["step"] for line in (folder / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps.count(0) == 1


def test_a_language_model_that_could_not_be_used_is_told_before_the_training(folder, encoder, monkeypatch):
    with pytest.raises(ValueError, match="nothing to be weighed by"):
        config_of(encoder, folder / "run", likelihood_model="friend-sft", negatives={"unwelcome": 0.1})
    monkeypatch.setattr("models.load.PRETRAINED", folder)  # no smollm2 there
    (folder / "friend-on-smollm2").mkdir()
    settings = json.dumps({"base_model_name_or_path": "smollm2"})
    (folder / "friend-on-smollm2" / "adapter_config.json").write_text(settings)
    with pytest.raises(FileNotFoundError, match="make smollm2"):
        train.main(config_of(encoder, folder / "run", likelihood_model="friend-on-smollm2"))


def test_training_goes_on_from_a_trained_adapter_with_all_its_heads(folder, encoder):
    first = config_of(encoder, folder / "first", num_members=2, num_train_epochs=1.0)
    train.main(first)
    train.main(config_of(str(folder / "first"), folder / "second", num_members=2, num_train_epochs=1.0))
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("first", "second")]
    scorers = [load_scorer(folder / name) for name in ("first", "second")]
    assert summaries[1]["test/nll"] < summaries[0]["test/nll"]
    assert scorers[1].logits(ROWS).shape == (3, 2, 8) and scorers[0].emotions(ROWS).shape == (3, 28)
    settings = json.loads((folder / "second" / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == encoder
    with pytest.raises(ValueError, match="num_members is 1"):
        train.main(config_of(str(folder / "first"), folder / "third"))


def test_a_source_without_emotions_has_none_measured(folder, encoder):
    rows = [
        {**row, "label": None, "disengaged": 0.0, "source": "openers", "kind": "true", "pair": None, "dialogue": "d"}
        for row in ROWS[:2]
    ]
    labels, weights = labels_and_weights("reaction")
    model, tokenizer = train.make_model(config_of(encoder, folder / "none"), labels)
    metrics = train.evaluate(Scorer(model, tokenizer, labels, weights, "reaction", 64), rows)
    assert metrics["nll"] > 0 and "macro_f1" not in metrics


def test_every_trainable_weight_moves(folder, encoder):
    config = config_of(encoder, folder / "moves", num_train_epochs=1.0)
    labels, weights = labels_and_weights("reaction")
    train.set_seed(config.seed)
    model, tokenizer = train.make_model(config, labels)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = train.start_run(config, stage="reward", seed=1)
    rows = {split: load_rows(config, split) for split in SPLITS}
    train.make_trainer(config, run, Scorer(model, tokenizer, labels, weights, "reaction", 64), rows).train()
    run.wandb.finish()
    assert any(p.requires_grad for p in model.parameters())
    for name, p in model.named_parameters():
        if "emotions" not in name:  # no comments among the rows
            assert torch.equal(p, start[name]) != p.requires_grad, name


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def saved(scorer, tmp_path):
    scorer.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_line_adds_score_and_emotions(saved, scorer, tmp_path, monkeypatch):
    rows = [*ROWS, {"context": [], "response": "half \ud800", "id": 7}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score.main(score.ScoreConfig(saved, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("score", "emotions")} for row in written] == rows
    assert [row["score"] for row in written] == pytest.approx(scorer.score(rows)[0].tolist(), abs=1e-5)
    assert all(list(row["emotions"]) == list(REACTIONS) for row in written)
    assert sum(written[0]["emotions"].values()) == pytest.approx(1, abs=1e-5)


def test_the_explanation_adds_up_to_the_engagement(saved, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    score.main(score.ScoreConfig(saved, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), explain=True))
    for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        engagement = sum(part["product"] for part in row["explain"])
        assert np.log(engagement / (1 - engagement)) == pytest.approx(row["score"], abs=1e-4)
        assert {part["reaction"] for part in row["explain"]} == set(REACTIONS)


def test_a_bad_row_of_the_file_is_named_or_set_aside(saved, tmp_path):
    lines = [json.dumps(ROWS[0]), '{"context": []}', "{broken", json.dumps(ROWS[1])]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: key 'response' is missing"):
        score.main(score.ScoreConfig(saved, str(source), str(out)))
    assert not out.exists()
    score.main(score.ScoreConfig(saved, str(source), str(out), skip_bad_rows=True))
    assert len(out.read_text().splitlines()) == 2
    assert (tmp_path / "in.jsonl.bad").read_text().splitlines() == lines[1:3]


def test_check_row_takes_a_row_without_profile():
    assert check_row({"context": [], "response": ""}) == {"context": [], "response": ""}


@pytest.mark.parametrize("recipe", ["tiny", "full"])
def test_the_recipes_parse(recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--config", f"experiments/{recipe}/reward.yaml"])
    (config,) = train.parse_config(train.RewardConfig)
    assert config.preset == "reaction"
