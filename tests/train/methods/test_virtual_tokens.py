from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict

from config.token_methods import PrefixTuningMethod, PromptTuningMethod, PTuningMethod, VirtualTokenSettings
from config.training import TrainingConfig
from tests.tiny_llama import write_tiny_llama
from train.base.quantize import load_causal_lm
from train.errors import RecipeError
from train.evaluate.generation import continue_prompts
from train.evaluate.local import without_adapter
from train.methods.table import check_method
from train.methods.virtual_tokens import VirtualTokens

pytestmark = pytest.mark.slow

METHOD = VirtualTokens()
SETTINGS = [
    PromptTuningMethod(num_virtual_tokens=3),
    PTuningMethod(num_virtual_tokens=3),
    PrefixTuningMethod(num_virtual_tokens=3),
]
PROMPTS = [(5, 6, 7, 8), (5, 6, 9), (5, 6, 7, 10)]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def trained(base_folder: Path, settings: VirtualTokenSettings) -> PeftModel:
    """With large random virtual tokens, so that they change the answers."""
    torch.manual_seed(3)
    base = load_causal_lm(base_folder, dtype=torch.float32)
    model = get_peft_model(base, METHOD.peft_config(settings, base))
    assert isinstance(model, PeftModel)
    named = dict(model.named_parameters())
    size = named["prompt_encoder.default.embedding.weight"].shape
    set_peft_model_state_dict(model, {"prompt_embeddings": torch.randn(size)})
    finished = METHOD.finish(settings, model.eval(), base_folder, base_folder)
    assert isinstance(finished, PeftModel)
    return finished


def greedy(model: PeftModel, prompt: tuple[int, ...], num_tokens: int) -> list[float]:
    """Log-probabilities of the likeliest tokens by PEFT's own forward, the whole sequence again for each token."""
    ids, logprobs = list(prompt), []
    for _ in range(num_tokens):
        with torch.inference_mode():
            best = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(-1)
        ids.append(int(best.indices))
        logprobs.append(float(best.values))
    return logprobs


def generated(model: PeftModel) -> list[float]:
    rows = continue_prompts(model, PROMPTS, 5, lambda ids: False)
    return [logprob for row in rows for logprob in row.logprobs]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_generation_computes_as_pefts_forward(base_folder: Path, settings: VirtualTokenSettings) -> None:
    model = trained(base_folder, settings)
    with_tokens = generated(model)
    assert with_tokens == pytest.approx([value for p in PROMPTS for value in greedy(model, p, 5)], abs=1e-4)
    with without_adapter(model):
        plain = generated(model)
        assert plain == pytest.approx([value for p in PROMPTS for value in greedy(model, p, 5)], abs=1e-4)
    assert plain != pytest.approx(with_tokens, abs=1e-2)


def test_p_tuning_ends_as_what_the_best_checkpoint_holds(base_folder: Path) -> None:
    model = trained(base_folder, PTuningMethod(num_virtual_tokens=3))
    torch.manual_seed(3)
    kept = model.prompt_encoder["default"].embedding.weight  # type: ignore[union-attr]  # an embedding
    assert isinstance(kept, torch.Tensor)
    assert float(kept.detach().std()) > 0.7  # the encoder's output is far smaller
    torch.testing.assert_close(model.get_prompt(batch_size=1)[0], kept)


def test_text_and_its_initialisation_belong_together() -> None:
    with pytest.raises(RecipeError, match="prompt_tuning_init_text"):
        METHOD.check(PromptTuningMethod(prompt_tuning_init="TEXT"))


@pytest.mark.parametrize(
    ("method", "recipe", "message"),
    [
        ("prompt_tuning", {"label_smoothing_factor": 0.1}, "virtual tokens have no labels. Set it to 0"),
        ("prefix_tuning", {"gradient_checkpointing": True}, "added twice. Set it to false"),
    ],
)
def test_settings_that_virtual_tokens_break_are_refused(method: str, recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_method(TrainingConfig.model_validate({"method": method, "recipe": recipe}), allow_unserved=True)
