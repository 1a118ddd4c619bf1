"""Lint of a PEFT folder: whether this base and this engine can serve it, with every reason if not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import InvalidAdapterError, UnsupportedAdapterError
from adapters.lint.base_modules import Shape, read_base_modules
from adapters.lint.config import (
    MAX_LORA_RANK,
    LintFinding,
    check_adapter_config,
    is_prompt_learning,
    is_soft_prompt,
    rank_of,
)
from adapters.lint.dora import check_dora_tensors
from adapters.lint.files import check_files
from adapters.lint.foreign import look_for_foreign
from adapters.lint.origin import check_origin
from adapters.lint.peft_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraModule,
    LoraTensors,
    is_reward_model,
    lora_tensors,
    read_adapter_config,
    read_tensor_headers,
)
from adapters.lint.soft_prompt import check_soft_prompt
from adapters.lint.tensor_names import Renames, check_names, plan_renames
from adapters.lint.tensors import FLOAT_DTYPES, TensorHeader, is_zero
from adapters.lint.values import check_magnitudes
from adapters.lint.vocabulary import check_resized, check_tokenizer, check_whole_layers, resized
from adapters.lint.words import broken, examples

_UNREAD = {"symlink", "too-large"}  # with these, no file is even opened

REWARD_MODEL = "reward-model"
_REWARD_MODEL = LintFinding(
    "error",
    REWARD_MODEL,
    "It is a reward model (task_type SEQ_CLS): it gives scores and no answers.",
    "Name it as `reward_model` of `objective: grpo`.",
    is_unsupported=True,
)


def lint_folder(folder: Path, *, base_folder: Path | None, max_lora_rank: int) -> list[LintFinding]:
    """Findings on a PEFT folder; it can be served if none has the level "error".

    Args:
        base_folder: A Hugging Face model folder to compare with, or None to check the adapter alone.
        max_lora_rank: The server's setting of that name.

    Raises:
        InvalidBaseError: `base_folder` holds no weights.
    """
    findings = list(check_files(folder))
    if any(finding.code in _UNREAD for finding in findings):
        return findings
    if foreign := look_for_foreign(folder):
        return [foreign]
    base = read_base_modules(base_folder) if base_folder is not None else None
    try:
        config, headers = read_adapter_config(folder), read_tensor_headers(folder)
    except InvalidAdapterError as error:
        return [*findings, LintFinding("error", "unreadable", str(error))]
    if is_reward_model(config):
        return [*findings, _REWARD_MODEL]
    if is_prompt_learning(config):
        return [*findings, *_check_prompt_folder(folder, config, headers, base_folder, base or {})]
    renames = plan_renames(headers, base)
    findings += check_names(renames)
    headers = _renamed(headers, renames)
    tensors = lora_tensors(headers)
    findings += _check_required(config)
    findings += check_origin(config, base_folder)
    config_findings = check_adapter_config(config, max_lora_rank=max_lora_rank)
    findings += config_findings
    findings += _check_tensors(tensors, headers, base or {})
    findings += check_dora_tensors(tensors.modules, config, base or {})
    is_sound = all(finding.level != "error" or finding.is_unsupported for finding in config_findings)
    is_lora = all(finding.code != "peft-type" for finding in config_findings)
    if is_sound:
        findings += _check_shapes(tensors.modules, config)
    findings += _check_values(folder / WEIGHTS_FILE, tensors.modules, config if is_sound and is_lora else None)
    if base_folder is not None and base is not None:
        findings += check_tokenizer(folder, base_folder)
        findings += _check_base(tensors.modules, base, base_folder.name, config)
    return findings


def _check_prompt_folder(
    folder: Path,
    config: dict[str, Any],
    headers: dict[str, TensorHeader],
    base_folder: Path | None,
    base: dict[str, Shape | None],
) -> Iterator[LintFinding]:
    yield from check_origin(config, base_folder)
    yield from check_adapter_config(config, max_lora_rank=MAX_LORA_RANK)
    if is_soft_prompt(config):
        yield from check_soft_prompt(folder / WEIGHTS_FILE, config, headers, base)
    if base_folder is not None:
        yield from check_tokenizer(folder, base_folder)


def raise_errors(findings: Sequence[LintFinding], subject: str) -> None:
    """Raise if any finding has the level "error".

    Raises:
        UnsupportedAdapterError: Every error is that vLLM cannot serve the adapter.
        InvalidAdapterError: Something is broken.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    is_unsupported = all(finding.is_unsupported for finding in errors)
    error_class = UnsupportedAdapterError if is_unsupported else InvalidAdapterError
    raise error_class(f"{subject} cannot be served: " + " ".join(map(str, errors)))


def _check_required(config: dict[str, Any]) -> Iterator[LintFinding]:
    missing = sorted({"r", "lora_alpha", "target_modules"} - config.keys())
    if missing and config.get("peft_type", "LORA") == "LORA":
        yield LintFinding(
            "error", "config-keys", f"{CONFIG_FILE} lacks {missing!r}.", "Save the adapter with PEFT again."
        )


def _renamed(headers: dict[str, TensorHeader], renames: Renames) -> dict[str, TensorHeader]:
    """The tensors by their corrected names, so that the other checks apply to them."""
    if renames.collisions:
        return headers
    return {renames.names[name]: header for name, header in headers.items()}


def _check_tensors(
    tensors: LoraTensors, headers: dict[str, TensorHeader], base: dict[str, Shape | None]
) -> Iterator[LintFinding]:
    whole_layers, foreign = check_whole_layers(tensors, headers, base)
    yield from whole_layers
    if foreign:
        yield LintFinding(
            "error",
            "not-lora",
            f"{len(foreign)} tensors are neither lora_A nor lora_B: {examples(foreign)}.",
            "vLLM serves only LoRA weights; train without full modules or prompts.",
            is_unsupported=True,
        )
    if tensors.halves:
        yield broken("half-pair", f"{len(tensors.halves)} modules lack lora_A or lora_B", tensors.halves)
    if not tensors.modules and not tensors.foreign:
        yield LintFinding("error", "empty", f"{WEIGHTS_FILE} contains no LoRA weights.", "Save the adapter again.")


def _check_shapes(modules: Sequence[LoraModule], config: dict[str, Any]) -> Iterator[LintFinding]:
    wrong = []
    for module in modules:
        rank = rank_of(module.name, config)
        shapes = module.lora_a.shape, module.lora_b.shape
        if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != rank or shapes[1][1] != rank:
            wrong.append(f"{module.name} (rank {rank}) has A {shapes[0]} and B {shapes[1]}")
    if wrong:
        yield broken("rank-shape", f"{len(wrong)} modules do not have the rank of {CONFIG_FILE}", wrong)


def _check_values(path: Path, modules: Sequence[LoraModule], config: dict[str, Any] | None) -> Iterator[LintFinding]:
    """`config` is None if it gives no usable scaling."""
    headers = [header for module in modules for header in module.headers]
    if other := [f"{header.name} ({header.dtype})" for header in headers if header.dtype not in FLOAT_DTYPES]:
        yield broken("dtype", f"{len(other)} tensors are not F32, F16 or BF16", other)
        return
    yield from check_magnitudes(path, modules, config)
    if modules and all(is_zero(path, module.lora_b) for module in modules):
        yield LintFinding(
            "warning",
            "no-op",
            "Every lora_B is zero, so the adapter does not change the base's answers.",
            "Train it for at least one step.",
        )


def _check_base(
    modules: Sequence[LoraModule], base: dict[str, Shape | None], name: str, config: dict[str, Any]
) -> Iterator[LintFinding]:
    missing = [module.name for module in modules if _layer(module) not in base]
    if modules and len(missing) == len(modules):
        yield LintFinding(
            "error",
            "no-module-applies",
            f"0/{len(modules)} modules apply to {name!r}, so it would answer as the base: "
            f"the base has no {examples(missing)}.",
            "Give the base that the adapter was trained on.",
        )
        return
    if missing:
        yield broken("module-missing", f"{len(missing)} modules do not exist in {name!r}", missing)
    transposed = bool(config.get("fan_in_fan_out"))
    of_other_tokens = {module: told for module in modules if (told := resized(module, base.get(_layer(module))))}
    yield from check_resized(list(of_other_tokens.values()))
    others = [module for module in modules if module not in of_other_tokens]
    if wrong := list(_wrong_shapes(others, base, transposed)):
        yield broken("base-shape", f"{len(wrong)} modules do not fit the layers of {name!r}", wrong)
    num_good = len(others) - len(missing) - len(wrong)
    yield LintFinding("info", "modules-apply", f"{num_good}/{len(modules)} modules apply to {name!r}.")


def _wrong_shapes(modules: Sequence[LoraModule], base: dict[str, Shape | None], transposed: bool) -> Iterator[str]:
    for module in modules:
        shape = base.get(_layer(module))
        if shape is None or len(module.lora_a.shape) != 2 or len(module.lora_b.shape) != 2:
            continue
        # An embedding is looked up: its weight is (in_features, out_features), as in GPT-2's Conv1D.
        wanted = shape[::-1] if module.is_embedding or transposed else shape
        if module.shape != wanted:
            yield f"{module.name} is for {module.shape}, the base has {wanted}"


def _layer(module: LoraModule) -> str:
    return module.name.removesuffix(".base_layer")  # PEFT wraps fused experts once more
