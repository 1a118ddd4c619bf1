"""PEFT's own prompt tuning and P-tuning of a base, with random virtual tokens of a visible effect."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from train.base.quantize import load_causal_lm

NUM_VIRTUAL_TOKENS = {"prompt": 7, "encoder": 19}


def save_soft_prompt(base_folder: Path, folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A PEFT folder as PEFT saves it. Virtual tokens are about as large as the base's own embeddings."""
    torch.manual_seed(seed)
    base = load_causal_lm(base_folder, dtype=torch.float32)
    scale = base.get_input_embeddings()(torch.arange(64)).std()
    model = get_peft_model(base, _config(kind))
    encoder: Any = model.prompt_encoder["default"]
    last = encoder.embedding if kind == "prompt" else encoder.mlp_head[-1]
    with torch.no_grad():
        growth = scale / model.get_prompt_embedding_to_save("default").std()
        for parameter in last.parameters():
            parameter.mul_(growth)
    model.save_pretrained(str(folder))
    return folder


def _config(kind: str) -> PeftConfig:
    fields: dict[str, Any] = {"num_virtual_tokens": NUM_VIRTUAL_TOKENS[kind], "task_type": "CAUSAL_LM"}
    return PromptTuningConfig(**fields) if kind == "prompt" else PromptEncoderConfig(encoder_hidden_size=16, **fields)


def load_soft_prompt(base_folder: Path, folder: Path) -> PeftModel:
    """PEFT's own model of base and soft prompt, in float32."""
    return PeftModel.from_pretrained(load_causal_lm(base_folder, dtype=torch.float32), str(folder)).eval()


@torch.inference_mode()
def token_logprobs(model: Any, token_ids: Sequence[int]) -> list[float]:
    """Log-probability (nats) of every token after the first, whatever stands in front of them."""
    ids = torch.tensor([list(token_ids)])
    logits = model(input_ids=ids, use_cache=False).logits[0, -len(token_ids) : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()


@torch.inference_mode()
def greedy(model: Any, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """What PEFT's own `generate` answers."""
    ids = torch.tensor([list(token_ids)])
    lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # of transformers, which PEFT drops
        answer = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths
        )
    answered: list[int] = answer[0, -num_tokens:].tolist()
    return answered
