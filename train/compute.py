"""Choice of precision and number of threads on this machine, measured on one of the model's decoder layers.

A candidate is a precision and a number of threads. Precisions:

- `bfloat16`: weights in bfloat16; training uses autocast and keeps the LoRA weights in float32.
- `float32`: weights and products in float32.
- `mixed`: weights and products of the linear layers in bfloat16, the rest in float32; training only.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from transformers import PreTrainedModel

from adapters.lint.peft_folder import MAGNITUDE
from adapters.store.manifest import ComputeRecord, Precision
from config.memory import free_memory_bytes
from train.attention import grouped_attention_of
from train.lora_linear import fuse_lora

BUDGET_S = 2.0
"""Time limit of a measurement; each candidate within the limit of its warm-up still runs at least twice."""

TRAINING: tuple[Precision, ...] = ("bfloat16", "float32", "mixed")
INFERENCE: tuple[Precision, ...] = ("bfloat16", "float32")

_LEAST_GAIN = 0.03
"""Relative gain a later candidate needs over an earlier one, so that noise does not change the choice."""
_HOPELESS = 3.0
"""Times the fastest's warm-up."""
_MAX_TOKENS = 1024
"""Tokens in a measurement; more would not change the measured speed."""
_ACTIVATIONS = 1.5
"""Memory of a model in float32 with its activations, as a multiple of its weights."""

Clock = Callable[[], float]
Run = Callable[[], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One combination of precision and number of threads."""

    precision: Precision
    num_threads: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"


@dataclass(frozen=True)
class Shape:
    """Shape of a layer's input: number of rows and tokens per row."""

    num_rows: int
    num_tokens: int


@dataclass(frozen=True)
class Part:
    """One timed part of the work, and how often it occurs."""

    run: Run
    times: float = 1.0


def measure_training(
    model: PreTrainedModel, lora: LoraConfig | None, shape: Shape, clock: Clock = time.perf_counter
) -> ComputeRecord:
    """Choose for the forward and backward pass of a batch of this shape. On a GPU: bfloat16, without measuring.

    Args:
        model: A base without an adapter; it is not modified.
        lora: None: the base's layer alone is measured.
    """
    if torch.cuda.is_available():
        return unmeasured()
    work = {p: (_training_part(model, lora, shape, p),) for p in TRAINING if _fits(model, p)}
    return _measure("training", work, clock)


def measure_inference(
    model: PeftModel | PreTrainedModel, prompts: Shape, num_new_tokens: int, clock: Clock = time.perf_counter
) -> ComputeRecord:
    """Choose for generation: one prefill of `prompts`, then `num_new_tokens` decode steps. On a GPU: unchanged."""
    if torch.cuda.is_available():
        return unmeasured()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    work = {p: _generation_parts(base, prompts, num_new_tokens, p) for p in INFERENCE if _fits(base, p)}
    return _measure("generation", work, clock)


def unmeasured() -> ComputeRecord:
    """bfloat16 with torch's default number of threads."""
    return ComputeRecord(precision="bfloat16", num_threads=torch.get_num_threads())


def compute_in(model: torch.nn.Module, compute: ComputeRecord) -> None:
    """Apply a choice to a model and this process's threads; LoRA weights are cast together with the base's."""
    if torch.cuda.is_available():
        return
    torch.set_num_threads(compute.num_threads)
    set_precision(model, compute.precision)


def set_precision(model: torch.nn.Module, precision: Precision) -> None:
    """Cast a model's weights. bitsandbytes tensors are kept; they are dequantized to this dtype when used."""
    from bitsandbytes.nn.modules import Linear4bit

    products = torch.float32 if precision == "float32" else torch.bfloat16
    # Buffers stay: the frequencies of rotary embeddings are float32 whatever the model is. So do DoRA's magnitudes.
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and MAGNITUDE not in name:
            parameter.data = parameter.data.to(weights_dtype(precision))
    # Often one tensor with the input embeddings, which are no product.
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = products
            module.compute_type_is_set = True
        elif precision == "mixed" and isinstance(module, torch.nn.Linear) and module is not head:
            module.weight.data = module.weight.data.to(products)


@contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float32 within the block if the model is bfloat16 on a CPU; the weights keep their values.

    PEFT adds LoRA to an output that is already rounded to bfloat16, and drops small changes. Our CPU operator keeps
    them (serve/kernels/lora.cpp), so the reference it is compared with must, too. On a GPU both drop them.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype == torch.float32:
        yield
        return
    set_precision(model, "float32")
    try:
        yield
    finally:
        set_precision(model, "bfloat16")


def weights_dtype(precision: Precision) -> torch.dtype:
    """Precision that a model is loaded in."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def choose(seconds: Mapping[Candidate, float]) -> Candidate:
    """The fastest candidate; the first of those within the noise margin."""
    best = min(seconds.values())
    return next(candidate for candidate, took in seconds.items() if took * (1 - _LEAST_GAIN) <= best)


def _measure(what: str, work: Mapping[Precision, Sequence[Part]], clock: Clock) -> ComputeRecord:
    """Choose the precision at torch's number of threads, then reduce the threads while that is faster."""
    before = torch.get_num_threads()
    try:
        seconds = time_each({Candidate(p, before): parts for p, parts in work.items()}, BUDGET_S / 2, clock)
        chosen = choose(seconds)
        while chosen.num_threads > 1:
            fewer = Candidate(chosen.precision, chosen.num_threads // 2)
            seconds |= time_each({fewer: work[fewer.precision]}, BUDGET_S / 4, clock)
            if choose(seconds) != fewer:
                break
            chosen = fewer
    finally:
        torch.set_num_threads(before)
    layer_ms = {str(candidate): round(1000 * took, 2) for candidate, took in seconds.items()}
    shown = "; ".join(f"{label} {ms:g} ms" for label, ms in layer_ms.items())
    logger.info("%s computes in %s (one layer: %s)", what, chosen, shown)
    return ComputeRecord(precision=chosen.precision, num_threads=chosen.num_threads, layer_ms=layer_ms)


def time_each(
    work: Mapping[Candidate, Sequence[Part]], budget_s: float, clock: Clock = time.perf_counter
) -> dict[Candidate, float]:
    """Seconds of each candidate's work, interleaved after one warm-up each; the fastest run of each part counts.

    A clearly slower candidate keeps its warm-up time once the warm-ups have used up the budget.
    """
    end_s = clock() + budget_s
    warm_ups = {candidate: _run_each(candidate, parts, clock) for candidate, parts in work.items()}
    seconds = {candidate: _total(parts, warm_ups[candidate]) for candidate, parts in work.items()}
    # A first run also takes what no other does, which shows in short ones.
    most_s = float("inf") if clock() < end_s else _HOPELESS * min(seconds.values())
    hopeful = [candidate for candidate, took in seconds.items() if took <= most_s]
    best: dict[Candidate, list[float]] = {}
    while not best or clock() < end_s:
        for candidate in hopeful:
            took = _run_each(candidate, work[candidate], clock)
            best[candidate] = list(map(min, best.get(candidate, took), took))
    return seconds | {candidate: _total(work[candidate], took) for candidate, took in best.items()}


def _run_each(candidate: Candidate, parts: Sequence[Part], clock: Clock) -> list[float]:
    """Seconds per part."""
    torch.set_num_threads(candidate.num_threads)
    seconds = []
    for part in parts:
        start = clock()
        part.run()
        seconds.append(clock() - start)
    return seconds


def _total(parts: Sequence[Part], seconds: Sequence[float]) -> float:
    return sum(part.times * took for part, took in zip(parts, seconds, strict=True))


def _training_part(model: PreTrainedModel, lora: LoraConfig | None, shape: Shape, precision: Precision) -> Part:
    layer = _one_layer(model)
    set_precision(layer, precision)
    if lora is not None:
        inject_adapter_in_model(lora, layer)
        fuse_lora(layer)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as PEFT keeps them
    inputs, times = _inputs(model, shape, precision)
    inputs.requires_grad_()

    def run() -> None:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32")
        with grouped_attention_of(layer), autocast:
            hidden = layer(inputs_embeds=inputs, use_cache=False).last_hidden_state
        hidden.sum().backward()

    return Part(run, times)


def _generation_parts(model: PreTrainedModel, prompts: Shape, num_new_tokens: int, precision: Precision) -> list[Part]:
    layer = _one_layer(model).eval()
    set_precision(layer, precision)
    prefill, times = _inputs(model, prompts, precision)
    step, _ = _inputs(model, Shape(prompts.num_rows, 1), precision)

    def run(inputs: torch.Tensor) -> None:
        with torch.inference_mode(), grouped_attention_of(layer):
            layer(inputs_embeds=inputs, use_cache=False)

    return [Part(lambda: run(prefill), times), Part(lambda: run(step), num_new_tokens)]


def _inputs(model: PreTrainedModel, shape: Shape, precision: Precision) -> tuple[torch.Tensor, float]:
    """Random hidden states, just enough rows to measure a layer, and how many times the full shape is larger."""
    num_rows = max(1, min(shape.num_rows, _MAX_TOKENS // shape.num_tokens))
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    size = (num_rows, shape.num_tokens, embeddings.shape[1])
    return torch.randn(size, dtype=weights_dtype(precision)), shape.num_rows / num_rows


def _one_layer(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the decoder with only its first layer and without embeddings."""
    decoder = model.get_decoder()
    memo: dict[int, object] = {id(model.get_input_embeddings()): torch.nn.Identity()}
    for layers in (child for child in decoder.children() if isinstance(child, torch.nn.ModuleList)):
        memo[id(layers)] = torch.nn.ModuleList(copy.deepcopy(layer) for layer in layers[:1])
    layer: PreTrainedModel = copy.deepcopy(decoder, memo)
    return layer


def _fits(model: PreTrainedModel, precision: Precision) -> bool:
    """Whether the whole model in this precision fits into memory beside the loaded one."""
    weights_bytes = weights_dtype(precision).itemsize * model.num_parameters()
    return precision == "bfloat16" or _ACTIVATIONS * weights_bytes < free_memory_bytes()
