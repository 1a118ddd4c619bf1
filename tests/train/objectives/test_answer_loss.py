from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from tests.tiny_architectures import ARCHITECTURES, MOSTLY_SLOW, SLIDING_WINDOW, tiny_model
from tests.tiny_llama import tiny_tokenizer
from train.attention import grouped_attention_of
from train.data.encode import IGNORED
from train.methods.targets import resolve_target_modules
from train.objectives.answer_loss import (
    AnswerLossTrainer,
    LossPaths,
    PaddedBatch,
    loss_and_gradient,
    shared_prefix_length,
)

pytestmark = pytest.mark.slow

NUM_SHARED = 2 * SLIDING_WINDOW + 3
SCALED = ("gemma2", "granite", "cohere")


def adapted(architecture: str) -> PreTrainedModel:
    """With a random adapter on every linear layer, so that each has a gradient."""
    model = tiny_model(architecture)
    config = LoraConfig(r=4, target_modules=resolve_target_modules(model, "all-linear"), init_lora_weights=False)
    adapted_model = get_peft_model(model, config)
    assert isinstance(adapted_model, PeftModel)
    base = adapted_model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def random_batch(num_shared: int, num_rest: int = 20) -> dict[str, torch.Tensor]:
    """Four examples that begin with the same tokens, of four lengths, with answers of two to five tokens."""
    random = torch.Generator().manual_seed(1)
    prefix = torch.randint(3, 250, (1, num_shared), generator=random).repeat(4, 1)
    input_ids = torch.cat([prefix, torch.randint(3, 250, (4, num_rest), generator=random)], 1)
    position, length = torch.arange(input_ids.shape[1]), input_ids.shape[1] - 3 * torch.arange(4)[:, None]
    is_token = position < length
    is_answer = is_token & (position >= length - torch.arange(2, 6)[:, None])
    return {
        "input_ids": input_ids.where(is_token, 2),
        "attention_mask": is_token.long(),
        "labels": input_ids.where(is_answer, IGNORED),
    }


def batch_of(inputs: dict[str, torch.Tensor], num_shared: int) -> PaddedBatch:
    return PaddedBatch(**inputs, num_shared=num_shared)


def trainer_of(architecture: str, folder: Path, **settings: Any) -> AnswerLossTrainer:
    model = tiny_model(architecture)
    config = LoraConfig(
        r=4, target_modules=resolve_target_modules(model, "all-linear"), init_lora_weights=False, task_type="CAUSAL_LM"
    )
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        prediction_loss_only=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **{"gradient_checkpointing": False, **settings},
    )
    data = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": [IGNORED, 4, 5]}])
    return AnswerLossTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tiny_tokenizer(), peft_config=config
    )


def own_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    loss: torch.Tensor = model(**inputs, use_cache=False).loss
    return loss


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("num_shared", [0, NUM_SHARED])
@pytest.mark.parametrize("architecture", MOSTLY_SLOW)
def test_loss_and_gradient_are_the_models_own(architecture: str, num_shared: int, tmp_path: Path) -> None:
    inputs = random_batch(num_shared)
    trainer = trainer_of(architecture, tmp_path)
    assert isinstance(trainer.model, PeftModel)
    own = own_loss(trainer.model, inputs)
    own.backward()
    own_gradients = gradients(trainer.model)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    assert len(own_gradients) == 2 * 2 * len(resolve_target_modules(tiny_model(architecture), "all-linear"))
    torch.testing.assert_close(gradients(trainer.model), own_gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", MOSTLY_SLOW)
def test_smoothed_loss_and_gradient_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    inputs = random_batch(NUM_SHARED)
    trainer = trainer_of(architecture, tmp_path, label_smoothing_factor=0.2)
    assert isinstance(trainer.model, PeftModel)
    assert trainer.label_smoother is not None
    rest = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    own = trainer.label_smoother(trainer.model(**rest, use_cache=False), inputs["labels"], shift_labels=True)
    own.backward()
    own_gradients = gradients(trainer.model)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    torch.testing.assert_close(gradients(trainer.model), own_gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"neftune_noise_alpha": 5.0}, "answer positions"),
        ({"gradient_checkpointing": True}, "answer positions"),
        ({}, "shared prefix"),
    ],
)
def test_noise_and_checkpointing_leave_exact_paths_only(settings: dict[str, Any], path: str, tmp_path: Path) -> None:
    trainer = trainer_of("llama", tmp_path, **settings)
    batch = batch_of(random_batch(NUM_SHARED), NUM_SHARED)
    assert isinstance(trainer.model, PeftModel)
    causal_lm = trainer.model.get_base_model()
    assert isinstance(causal_lm, PreTrainedModel)
    assert trainer._loss_paths.choose(causal_lm, batch) == path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_the_fast_paths(architecture: str) -> None:
    model, paths = adapted(architecture), LossPaths()
    assert paths.choose(model, batch_of(random_batch(NUM_SHARED), NUM_SHARED)) == "shared prefix"
    assert paths.choose(model, batch_of(random_batch(0), 0)) == "answer positions"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3", "gpt_neox", "granite", "cohere"])
def test_rows_packed_into_one_give_the_models_own_loss(architecture: str) -> None:
    model, batch = adapted(architecture), batch_of(random_batch(NUM_SHARED), NUM_SHARED)
    own = loss_and_gradient(model, batch, "own forward")
    with grouped_attention_of(model):
        assert LossPaths().choose(model, batch) == "packed rows"
        packed = loss_and_gradient(model, batch, "packed rows")
    assert max(own.relative_gap(packed)) < 1e-4


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_rows_of_a_sliding_window_are_not_packed(architecture: str) -> None:
    model = adapted(architecture)
    with grouped_attention_of(model):
        assert LossPaths().choose(model, batch_of(random_batch(NUM_SHARED), NUM_SHARED)) == "shared prefix"


@pytest.mark.parametrize("architecture", SCALED)
def test_the_output_layer_alone_gives_another_loss(architecture: str) -> None:
    """The caps and scales of these tests are large enough to be missed."""
    inputs, model = random_batch(0), adapted(architecture)
    hidden = model.get_decoder()(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    labels = inputs["labels"][:, 1:]
    logits = model.get_output_embeddings()(hidden[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert loss.item() > 1.1 * own_loss(model, inputs).item()


def test_a_prefix_that_changes_the_loss_is_not_shared() -> None:
    wrong = batch_of(random_batch(0), num_shared=8)  # these examples share nothing
    assert LossPaths().choose(adapted("llama"), wrong) == "answer positions"


def test_logits_that_depend_on_the_position_take_the_own_forward() -> None:
    model = adapted("llama")
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits * torch.arange(logits.shape[1])[None, :, None]
    )
    assert LossPaths().choose(model, batch_of(random_batch(NUM_SHARED), NUM_SHARED)) == "own forward"


def test_a_longer_batch_is_compared_again_and_a_shorter_one_is_not() -> None:
    model, paths = adapted("llama"), LossPaths()
    assert paths.choose(model, batch_of(random_batch(10, num_rest=20), 10)) == "shared prefix"
    assert paths.choose(model, batch_of(random_batch(0, num_rest=20), num_shared=8)) == "shared prefix"
    assert paths.choose(model, batch_of(random_batch(0, num_rest=40), num_shared=8)) == "answer positions"


def test_the_path_and_its_figures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="train.objectives.answer_loss"):
        LossPaths().choose(adapted("gemma2"), batch_of(random_batch(NUM_SHARED), NUM_SHARED))
    assert "training loss by shared prefix equals the model's own forward at 55 tokens: loss" in caplog.text


def test_rows_of_one_length_are_compared_in_twos() -> None:
    inputs = random_batch(0)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    first, second = batch_of(inputs, 0).longest_and_shortest().input_ids
    assert not torch.equal(first, second)


def test_comparing_leaves_gradients_and_training_mode_alone() -> None:
    model = adapted("llama").train()
    loss_and_gradient(model, batch_of(random_batch(0), 0), "own forward")
    assert model.training
    assert gradients(model) == {}


def test_the_shared_prefix_ends_where_examples_differ() -> None:
    input_ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 9, 4, 5]])
    labels = torch.tensor([[-100, -100, -100, -100, 5]] * 2)
    assert shared_prefix_length(input_ids, labels) == 2


def test_the_shared_prefix_leaves_the_position_that_predicts_the_answer() -> None:
    input_ids = torch.tensor([[1, 2, 3, 4, 5]] * 2)
    labels = torch.tensor([[-100, -100, -100, 4, 5]] * 2)
    assert shared_prefix_length(input_ids, labels) == 2
