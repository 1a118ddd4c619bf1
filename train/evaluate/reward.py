"""Scores of a reward model: of encoded texts, and of answers by a published version."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from config.dataset import Message
from train.base.quantize import load_reward_model
from train.data.encode import encode


@torch.inference_mode()
def score_sequences(model: PreTrainedModel | PeftModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The score of each sequence of token ids, one at a time and so without padding."""
    return [
        float(model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, 0])
        for ids in sequences
    ]


class RewardScorer:
    """A published version of `objective: reward`, as a scorer of answers."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, version_folder: Path, base_folder: Path) -> "RewardScorer":
        """Load base, adapter and score from the folders of the version and of its base."""
        # In bf16, scores of good and bad answers round to the same number where they are close.
        base = load_reward_model(base_folder, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        # As TRL trained it: the score is read at the last token that is not this one.
        has_pad = tokenizer.pad_token_id is not None
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id if has_pad else tokenizer.eos_token_id
        return cls(PeftModel.from_pretrained(base, str(version_folder)), tokenizer)

    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], at: datetime) -> list[float]:
        """The score of each answer to its prompt; `at` is the time passed to the chat template."""
        encoded = [
            encode(self._tokenizer, (*prompt, Message(role="assistant", content=answer)), at)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return score_sequences(self._model, [one.input_ids for one in encoded])
