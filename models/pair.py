"""PairClassifier: a Bert that reads two segments together and compares them.

The reaction head sees the mean u of the first segment's states, the mean v of the second's, u * v and |u - v| (Conneau et
al. 2017, InferSent). A linear probe on frozen MiniLM (3,200 rows; 350 true rows of the sample's validation, the better of
two penalties each) put a true reply above a swapped one in 72 % of pairs; on one mean over both segments 66 %, on the
[CLS] pooler 58 %. With the pooler as head, LoRA still predicted one label for all rows after 148 steps.

Members of an ensemble are heads on one encoder, side by side in `classifier`, so that four cost what one does. A second
head names the emotions of the second segment alone (GoEmotions' 28).

Axes: B rows, T tokens, H the encoder's width, K members, R labels, E emotions.
"""

from dataclasses import dataclass

import torch
from transformers import BertModel, BertPreTrainedModel
from transformers.utils import ModelOutput

NUM_EMOTIONS = 28  # GoEmotions' labels, in the order of data/emotions.py


@dataclass
class PairOutput(ModelOutput):
    """logits_BN with N = K x R, a member's labels next to each other; emotion_logits_BE."""

    logits: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None


class PairClassifier(BertPreTrainedModel):
    """config.num_members x config.num_labels outputs, and NUM_EMOTIONS of the second head."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.norm = torch.nn.LayerNorm(4 * config.hidden_size, elementwise_affine=False)  # u * v is of another scale
        self.classifier = torch.nn.Linear(4 * config.hidden_size, config.num_members * config.num_labels)
        self.emotions = torch.nn.Linear(config.hidden_size, NUM_EMOTIONS)
        self.post_init()

    def forward(self, input_ids, attention_mask, token_type_ids, **unused) -> PairOutput:
        """From input_ids_BT; token_type_ids_BT are 0 on the first segment, 1 on the second."""
        states_BTH = self.states(input_ids, attention_mask, token_type_ids).float()  # the encoder may be in bf16
        u_BH = _mean(states_BTH, attention_mask * (1 - token_type_ids))
        v_BH = _mean(states_BTH, attention_mask * token_type_ids)
        features = self.norm(torch.cat([u_BH, v_BH, u_BH * v_BH, (u_BH - v_BH).abs()], dim=-1))
        return PairOutput(logits=self.classifier(features), emotion_logits=self.emotions(v_BH))

    def states(self, input_ids, attention_mask, token_type_ids) -> torch.Tensor:
        """states_BTH of the last layer: every token of both segments sees every other."""
        return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state


class BiEncoder(PairClassifier):
    """The same heads on segments that do not see each other: each is read by itself, from position 0 on.

    Another kind of judge than the one that PPO optimises: what a cross-encoder was fooled by, it need not be.
    """

    def states(self, input_ids, attention_mask, token_type_ids) -> torch.Tensor:
        is_seen_BTT = (token_type_ids[:, :, None] == token_type_ids[:, None, :]) & attention_mask[:, None, :].bool()
        index_BT = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        first_B1 = ((1 - token_type_ids) * attention_mask).sum(1, keepdim=True)
        position_ids = torch.where(token_type_ids == 1, index_BT - first_B1, index_BT)
        return self.bert(
            input_ids, is_seen_BTT[:, None], torch.zeros_like(token_type_ids), position_ids=position_ids
        ).last_hidden_state


#: What a recipe calls them.
ARCHITECTURES = {"cross_encoder": PairClassifier, "bi_encoder": BiEncoder}


def _mean(states_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    weight_BT1 = mask_BT[..., None].to(states_BTH.dtype)
    return (states_BTH * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1)
