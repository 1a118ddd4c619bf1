from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Lfm2Config, Lfm2ForCausalLM

from tests.tiny_architectures import ARCHITECTURES, MOSTLY_SLOW, SLIDING_WINDOW, tiny_model
from train.evaluate.generation import Continuation, continue_prompts
from train.methods.targets import resolve_target_modules

pytestmark = pytest.mark.slow

END = 2
SHARED = tuple(range(3, 3 + SLIDING_WINDOW + 4))


def adapted(model: torch.nn.Module) -> PeftModel:
    config = LoraConfig(r=4, target_modules=resolve_target_modules(model, "all-linear"), init_lora_weights=False)
    torch.manual_seed(1)
    adapted_model = get_peft_model(model, config)
    assert isinstance(adapted_model, PeftModel)
    return adapted_model.eval()


def random_prompts(prefix: tuple[int, ...] = SHARED) -> list[tuple[int, ...]]:
    """Of four lengths, some of them twice, in no order."""
    random = torch.Generator().manual_seed(2)
    lengths = (9, 1, 30, 9, 4, 30)
    return [(*prefix, *torch.randint(3, 250, (length,), generator=random).tolist()) for length in lengths]


def never(token_ids: list[int]) -> bool:
    return False


def alone(model: PeftModel, prompt: tuple[int, ...], num_tokens: int) -> tuple[list[int], list[float]]:
    """What `transformers` generates for one prompt, without padding and without a shared prefix."""
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    token_ids = output.sequences[0, len(prompt) :].tolist()
    logprobs = [logits[0].log_softmax(-1)[t].item() for logits, t in zip(output.logits, token_ids, strict=True)]
    return token_ids, logprobs


def answers_as_transformers_generates(architecture: str, prefix: tuple[int, ...]) -> None:
    model, prompts = adapted(tiny_model(architecture)), random_prompts(prefix)
    rows = continue_prompts(model, prompts, SLIDING_WINDOW + 4, never)
    expected = [alone(model, prompt, SLIDING_WINDOW + 4) for prompt in prompts]
    assert [row.token_ids for row in rows] == [token_ids for token_ids, _ in expected]
    torch.testing.assert_close(
        [row.logprobs for row in rows], [logprobs for _, logprobs in expected], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("architecture", MOSTLY_SLOW)
def test_each_architecture_answers_as_transformers_generates(architecture: str) -> None:
    answers_as_transformers_generates(architecture, SHARED)


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=() if name == "gemma2" else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_prompts_that_share_nothing_are_answered_likewise(architecture: str) -> None:
    answers_as_transformers_generates(architecture, ())


def test_a_cache_of_another_kind_is_neither_shared_nor_merged() -> None:
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"], initializer_range=0.2,
    )  # fmt: skip
    model, prompts = adapted(Lfm2ForCausalLM(config)), random_prompts()
    rows = continue_prompts(model, prompts, 5, never)
    assert [row.token_ids for row in rows] == [alone(model, prompt, 5)[0] for prompt in prompts]


def test_a_row_ends_with_its_last_token_and_the_others_go_on() -> None:
    model, prompts = adapted(tiny_model("gemma3")), random_prompts()
    free = continue_prompts(model, prompts, 8, never)
    end = free[0].token_ids[2]
    ended = continue_prompts(model, prompts, 8, lambda token_ids: token_ids[-1] == end)
    assert [row.token_ids for row in ended] == [until(row.token_ids, end) for row in free]
    assert len({len(row.token_ids) for row in ended}) > 1


def until(token_ids: list[int], end: int) -> list[int]:
    return token_ids[: token_ids.index(end) + 1] if end in token_ids else token_ids


def test_tokens_are_chosen_with_what_each_row_has_so_far() -> None:
    model, prompts = adapted(tiny_model("llama")), random_prompts()

    def count(logits: torch.Tensor, rows: Sequence[Continuation]) -> torch.Tensor:
        return torch.tensor([100 * row.row + len(row.token_ids) for row in rows]).clamp(max=logits.shape[-1] - 1)

    rows = continue_prompts(model, prompts[:2], 3, never, count)
    assert [row.token_ids for row in rows] == [[0, 1, 2], [100, 101, 102]]


def test_a_batch_is_over_when_its_last_rows_end_together() -> None:
    rows = continue_prompts(adapted(tiny_model("llama")), random_prompts(), 5, lambda token_ids: len(token_ids) == 2)
    assert {len(row.token_ids) for row in rows} == {2}
