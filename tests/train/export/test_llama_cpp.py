"""llama.cpp answers a domain's held-out questions as the training stack does."""

from datetime import datetime

import pytest
import torch
from transformers import AutoTokenizer

from config.dataset import read_split
from config.forgetting import ForgettingConfig, OverfittingConfig
from config.home import Home
from config.load import load_domain
from tests.exported import adapted
from tests.llama_cpp import llama_cpp  # noqa: F401 - a fixture
from tests.tracked_files import ROOT
from train.base.prepare import prepare_base
from train.data.encode import encode_prompt
from train.export.gguf import export_gguf
from train.export.version import open_version
from train.pipeline import train_and_publish

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]  # tiny models: test_gguf.py

NUM_QUESTIONS = 20
NEARLY_EQUAL = 0.1
"""Nats between two tokens that rounding to float16 may swap; 20 steps of training leave the answers unsure."""
_SMALL = {
    "data": {"num_train": 320, "num_validation": 16, "num_test": 20},
    "recipe": {"max_steps": 20, "eval_steps": 20},
    "evaluation": {
        "forgetting": ForgettingConfig(texts=(), tasks=(), other_domains="none"),
        "overfitting": OverfittingConfig(num_rows=0),
        "robustness": None,
    },
}


@pytest.fixture(scope="module")
def medical_home(tmp_path_factory) -> Home:
    """The packaged base and a medical adapter after 20 steps."""
    home = Home(tmp_path_factory.mktemp("medical"))
    prepare_base("smollm2-135m", home=home)
    domain = load_domain(ROOT / "config/domains/medical.yaml")
    changes = {name: getattr(domain, name).model_copy(update=fields) for name, fields in _SMALL.items()}
    torch.set_num_threads(2)
    train_and_publish(domain.model_copy(update=changes), home, force=True)
    return home


def answers_of_transformers(model, prompts, end_id):
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=end_id
        )
        yield [token for token in out[0, len(prompt) :].tolist() if token != end_id]


@torch.inference_mode()
def gap_of(model, prompt, wanted, got):
    """Where two answers part: by how many nats the model prefers its own token, which is how sure it was."""
    start = next(n for n, (own, other) in enumerate(zip(wanted, got, strict=False)) if own != other)
    logits = model(input_ids=torch.tensor([[*prompt, *wanted[:start]]])).logits[0, -1].float()
    return float(logits[wanted[start]] - logits[got[start]])


def test_held_out_answers_agree(medical_home, tmp_path, llama_cpp):  # noqa: F811
    version = open_version(medical_home, "medical@1")
    export_gguf(version, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(version.base_folder)
    rows = read_split(medical_home.datasets / "medical", "test")[:NUM_QUESTIONS]
    prompts = [encode_prompt(tokenizer, row.prompt, datetime(2026, 11, 29)) for row in rows]
    texts = [tokenizer.decode(list(prompt)) for prompt in prompts]
    end_id = tokenizer.eos_token_id
    got = llama_cpp.run(tmp_path / "base.gguf", tmp_path / "adapter.gguf", prompts, texts, end_tokens=[end_id])
    model = adapted(version.base_folder, version.folder)
    wanted = list(answers_of_transformers(model, prompts, end_id))
    different = [n for n in range(NUM_QUESTIONS) if got.answers[n] != wanted[n]]
    assert len(different) <= 2
    assert [
        gap for n in different if (gap := gap_of(model, prompts[n], wanted[n], got.answers[n])) > NEARLY_EQUAL
    ] == []
    assert got.tokens == [list(prompt) for prompt in prompts]
    with model.disable_adapter():
        base = list(answers_of_transformers(model, prompts[:3], end_id))
    assert base != wanted[:3]
