"""Losses of the trainers, compared with the papers' formulas on log-probabilities of the model's own forward."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from tests.tiny_llama import tiny_tokenizer, write_tiny_llama
from train.attention import grouped_attention_of
from train.bench_objectives import PlainPairs, PlainSingles
from train.lora_linear import fuse_lora
from train.objectives.preference_trainers import OrpoTrainer, PairTrainer, SingleTrainer, log_odds_ratio

pytestmark = pytest.mark.slow

PAIRS = [
    {"prompt_ids": [7, 8, 10, 11, 12, 13], "chosen_ids": [20, 21, 22], "rejected_ids": [30]},
    {"prompt_ids": [7, 8, 40, 41], "chosen_ids": [50], "rejected_ids": [60, 61, 62, 63]},
    {"prompt_ids": [7, 8, 40, 42, 43], "chosen_ids": [50, 51], "rejected_ids": [50, 52]},
]
SINGLES = [
    {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["chosen_ids"], "label": number != 1}
    for number, pair in enumerate(PAIRS)
]
BETA = 0.3
SMOOTHING = 0.2
Gains = list[torch.Tensor]
"""Of each answer, per token."""


def total(gains: Gains) -> torch.Tensor:
    return BETA * torch.stack([gain.sum() for gain in gains])


def mean(gains: Gains) -> torch.Tensor:
    return BETA * torch.stack([gain.mean() for gain in gains])


def sigmoid_loss(margin: torch.Tensor) -> torch.Tensor:
    return -logsigmoid(margin)


FORMULAS: dict[str, Callable[[Gains, Gains], torch.Tensor]] = {
    "sigmoid": lambda c, r: sigmoid_loss(total(c) - total(r)),
    "hinge": lambda c, r: (1 - (total(c) - total(r))).clamp(min=0),
    "ipo": lambda c, r: ((mean(c) - mean(r)) / BETA - 1 / (2 * BETA)) ** 2,
    "robust": lambda c, r: (
        ((1 - SMOOTHING) * sigmoid_loss(total(c) - total(r)) - SMOOTHING * sigmoid_loss(total(r) - total(c)))
        / (1 - 2 * SMOOTHING)
    ),
    "sigmoid_norm": lambda c, r: sigmoid_loss(mean(c) - mean(r)),
    "apo_zero": lambda c, r: 1 - total(c).sigmoid() + total(r).sigmoid(),
    "apo_down": lambda c, r: total(c).sigmoid() + 1 - (total(c) - total(r)).sigmoid(),
}


def trainer(folder: Path, kind: Any, loss_type: str = "sigmoid", lora_dropout: float = 0.0) -> Any:
    """With an adapter that does something, in float32."""
    model = AutoModelForCausalLM.from_pretrained(write_tiny_llama(folder / "model"), dtype=torch.float32)
    shared: dict[str, Any] = {
        "output_dir": str(folder / "run"), "beta": BETA, "max_length": None, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "report_to": [], "per_device_train_batch_size": len(PAIRS),
        "disable_dropout": lora_dropout == 0,
    }  # fmt: skip
    is_single = issubclass(kind, KTOTrainer)
    smoothing = SMOOTHING if loss_type == "robust" else 0.0
    made = kind(
        model=model,
        args=KTOConfig(**shared, loss_type=loss_type, train_sampling_strategy="sequential", desirable_weight=0.5)
        if is_single
        else DPOConfig(**shared, loss_type=[loss_type], label_smoothing=smoothing),
        train_dataset=Dataset.from_list(SINGLES if is_single else PAIRS),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=lora_dropout
        ),
    )
    torch.manual_seed(3)
    for name, weight in model_of(made).named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return made


def model_of(made: Any) -> PeftModel:
    assert isinstance(made.model, PeftModel)
    return made.model


def loss_of(made: Any, *, is_packed: bool = True) -> torch.Tensor:
    """Of all rows as one batch; with their shared tokens computed once, as on a CPU, if the attention is ours."""
    base: Any = model_of(made).get_base_model()
    with grouped_attention_of(base) if is_packed else nullcontext():
        loss: torch.Tensor = made.compute_loss(model_of(made).eval(), made.data_collator(list(made.train_dataset)))
    return loss


def loss_and_gradients(made: Any, **how: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = loss_of(made, **how)
    loss.backward()
    weights = {name: weight.grad for name, weight in model_of(made).named_parameters() if weight.grad is not None}
    return loss, weights


def paths_of(made: Any) -> list[str]:
    return [path for path, equal_up_to in made._shared_prompts._equal_up_to.items() if equal_up_to]


def answer_logprobs(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logprobs = log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return logprobs[len(prompt) - 1 :]


def gains(made: Any, side: str) -> Gains:
    """Per token, over the base."""
    found = []
    for pair in PAIRS:
        policy = answer_logprobs(model_of(made), pair["prompt_ids"], pair[side])
        with model_of(made).disable_adapter():
            found.append(policy - answer_logprobs(model_of(made), pair["prompt_ids"], pair[side]))
    return found


@pytest.mark.parametrize("is_packed", [True, False], ids=["shared prompts", "answer positions"])
@pytest.mark.parametrize("loss_type", FORMULAS)
def test_a_dpo_loss_is_its_papers_formula(tmp_path: Path, loss_type: str, is_packed: bool) -> None:
    made = trainer(tmp_path, PairTrainer, loss_type)
    wanted = FORMULAS[loss_type](gains(made, "chosen_ids"), gains(made, "rejected_ids")).mean()
    untrained = FORMULAS[loss_type]([torch.zeros(1)], [torch.zeros(1)]).mean()
    assert abs(float(wanted - untrained)) > 0.01
    torch.testing.assert_close(loss_of(made, is_packed=is_packed).detach(), wanted, rtol=1e-4, atol=1e-5)
    assert paths_of(made) == ["shared prompts" if is_packed else "answer positions"]


@pytest.mark.parametrize(
    ("ours", "plain", "loss_type"),
    [
        (PairTrainer, PlainPairs, "sigmoid"),
        (SingleTrainer, PlainSingles, "kto"),
        *(
            pytest.param(PairTrainer, PlainPairs, loss, marks=pytest.mark.slow)
            for loss in FORMULAS
            if loss != "sigmoid"
        ),
        pytest.param(SingleTrainer, PlainSingles, "apo_zero_unpaired", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("is_packed", [True, False], ids=["shared prompts", "answer positions"])
def test_losses_and_gradients_equal_those_of_plain_trl(
    tmp_path: Path, ours: Any, plain: Any, loss_type: str, is_packed: bool
) -> None:
    made = trainer(tmp_path, ours, loss_type)
    fuse_lora(model_of(made))
    loss, gradients = loss_and_gradients(made, is_packed=is_packed)
    wanted_loss, wanted = loss_and_gradients(trainer(tmp_path, plain, loss_type), is_packed=False)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in wanted.values())
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-6)


def test_orpo_is_the_loss_of_prompt_and_chosen_less_the_odds(tmp_path: Path) -> None:
    made = trainer(tmp_path, OrpoTrainer)

    def mean_of(side: str) -> torch.Tensor:
        return torch.stack([answer_logprobs(model_of(made), p["prompt_ids"], p[side]).mean() for p in PAIRS])

    whole = [answer_logprobs(model_of(made), p["prompt_ids"][:1], p["prompt_ids"][1:] + p["chosen_ids"]) for p in PAIRS]
    odds = [mean_of(side) - torch.log1p(-mean_of(side).exp()) for side in ("chosen_ids", "rejected_ids")]
    wanted = -torch.cat(whole).mean() - BETA * logsigmoid(odds[0] - odds[1]).mean()
    torch.testing.assert_close(loss_of(made).detach(), wanted, rtol=1e-4, atol=1e-5)
    assert paths_of(made) == ["shared prompts"]


def test_the_odds_ratio_is_that_of_trl() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    means: Any = torch.tensor([-0.2, -1.5, -3.0, -0.1])
    stub: Any = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    theirs = ORPOTrainer.odds_ratio_loss(stub, means[:2], means[2:])[-1]
    ours = log_odds_ratio(means[:, None], torch.ones(4, 1)).mean()
    torch.testing.assert_close(ours, theirs)


def test_a_path_that_differs_from_trl_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, wanted = trainer(tmp_path, PairTrainer), loss_of(trainer(tmp_path, PlainPairs))
    base: Any = model_of(made).get_base_model()
    own = base.forward

    def wrong_for_selected_positions(**kwargs: Any) -> Any:
        output = own(**kwargs)
        return replace(output, log_probs=output.log_probs + 0.1) if "shift_labels" in kwargs else output

    base.forward = wrong_for_selected_positions
    torch.testing.assert_close(loss_of(made), wanted, rtol=1e-4, atol=1e-6)
    assert paths_of(made) == []
    assert caplog.text.count("are not used: they differ from TRL's") == 2


def test_dropout_does_not_hide_that_paths_are_equal(tmp_path: Path) -> None:
    made = trainer(tmp_path, PairTrainer, lora_dropout=0.5)
    base = model_of(made).get_base_model()
    assert isinstance(base, PreTrainedModel)
    with grouped_attention_of(base):
        made.compute_loss(model_of(made).train(), made.data_collator(PAIRS))
    assert paths_of(made) == ["shared prompts"]
    assert model_of(made).get_base_model().training
