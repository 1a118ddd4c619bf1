"""Lint of a LoRA configuration: finds what vLLM 0.32 cannot serve before training or upload."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import re2

from adapters.lint.peft_types import next_step

MAX_LORA_RANK = 512  # the largest `max_lora_rank` that vLLM takes
_MAX_ALPHA = 1e9  # also keeps out NaN and infinity

_MAX_PATTERNS = 2048  # PEFT writes one for each module where their ranks differ
_MAX_PATTERN_CHARS = 512
_MAX_PATTERN_MEM_BYTES = 1 << 16
_UNLIKE_PEFT = re.compile(r"\)[*+{]|\{,|\[:")  # `(a+)+` without an end; what RE2 reads in another way

# Other inits of PEFT change the base model's weights, so the adapter alone is not what was trained.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")

_VOCABULARY = re.compile("embed|lm_head|wte")

DORA_LAYER = "dora-layer"
"""Code of the finding on DoRA where it cannot be served."""
MAX_VIRTUAL_TOKENS = 256
"""Of a soft prompt: the engine reserves memory for as many in each adapter slot."""

_SOFT_PROMPTS = ("PROMPT_TUNING", "P_TUNING")
_OFFLINE = {
    "PREFIX_TUNING": "prefix tuning gives keys and values to every layer: it is evaluated offline only, not served",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning chooses a prompt by task id, which no request carries",
}
_NEAREST = "Train prompt tuning (peft_type PROMPT_TUNING) or a LoRA instead."

_VARIANTS = {
    "lora_bias": "a bias inside the LoRA layers",
    "alora_invocation_tokens": "Activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "trainable_token_indices": "embeddings of single tokens, as those trained for added tokens",
}


@dataclass(frozen=True)
class LintFinding:
    """One finding of lint; `code` is stable, `fix` is the next step ("" if none is needed)."""

    level: Literal["error", "warning", "info"]
    code: str
    message: str
    fix: str = ""
    is_unsupported: bool = False
    """Whether the adapter is valid for PEFT but cannot be served by vLLM."""

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


def check_adapter_config(config: dict[str, Any], *, max_lora_rank: int) -> list[LintFinding]:
    """Findings on a LoRA configuration, planned or saved; empty if vLLM can serve it.

    Args:
        config: PEFT's keys (`r`, `lora_alpha`, `bias`…); an absent key means PEFT's default.
        max_lora_rank: The server's setting of that name.
    """
    peft_type = peft_type_of(config)
    if is_soft_prompt(config):
        return list(_check_virtual_tokens(config))
    if peft_type in _OFFLINE:
        return [_unsupported("peft-type", f"peft_type is {peft_type!r}: {_OFFLINE[peft_type]}.", _NEAREST)]
    if peft_type != "LORA":
        return [
            _unsupported(
                "peft-type",
                f"peft_type is {peft_type!r}; served are 'LORA', 'PROMPT_TUNING' and 'P_TUNING'.",
                next_step(peft_type),
            )
        ]
    return [*_check_features(config), *_check_ranks(config, max_lora_rank), *_check_alphas(config)]


def peft_type_of(config: Mapping[str, Any]) -> str:
    """PEFT's type; `LORA` where there is none. `PeftType.LORA` is what an enum leaves."""
    return str(config.get("peft_type") or "LORA").rpartition(".")[2]


def is_soft_prompt(config: Mapping[str, Any]) -> bool:
    """Whether an adapter is virtual tokens in front of the prompt, and nothing else."""
    return peft_type_of(config) in _SOFT_PROMPTS


def is_prompt_learning(config: Mapping[str, Any]) -> bool:
    """Whether an adapter is a soft prompt, or another of PEFT's kinds of learned prompt, which are not served."""
    return is_soft_prompt(config) or peft_type_of(config) in _OFFLINE


def _check_virtual_tokens(config: dict[str, Any]) -> Iterator[LintFinding]:
    num_tokens = config.get("num_virtual_tokens")
    if type(num_tokens) is not int or num_tokens < 1:
        yield LintFinding(
            "error",
            "virtual-tokens",
            f"num_virtual_tokens is {num_tokens!r}; it must be a positive integer.",
            "Set num_virtual_tokens: 20.",
        )
    elif num_tokens > MAX_VIRTUAL_TOKENS:
        yield _unsupported(
            "virtual-tokens",
            f"num_virtual_tokens is {num_tokens}; at most {MAX_VIRTUAL_TOKENS} are served.",
            f"Train with up to {MAX_VIRTUAL_TOKENS}.",
        )
    if (config.get("num_transformer_submodules") or 1) != 1 or str(config.get("task_type")).endswith("SEQ_2_SEQ_LM"):
        yield _unsupported(
            "encoder-decoder",
            "The soft prompt is for an encoder and a decoder; only decoders are served.",
            "Train it with task_type: CAUSAL_LM.",
        )


def _check_features(config: dict[str, Any]) -> Iterator[LintFinding]:
    targets = config.get("target_modules")
    if config.get("use_dora") and _VOCABULARY.search(str(targets)):
        yield _unsupported(
            DORA_LAYER,
            f"use_dora is true and target_modules is {str(targets)[:200]!r}: DoRA is served on linear layers, not on "
            "embeddings or the output head.",
            "Leave these modules out, or set use_dora: false.",
        )
    if (bias := config.get("bias") or "none") != "none":
        yield _unsupported("bias", f"bias is {bias!r}; vLLM requires 'none'.", "Set bias: none.")
    if modules := config.get("modules_to_save"):
        yield _unsupported(
            "modules-to-save",
            f"modules_to_save is {modules!r}; vLLM does not load full modules with an adapter."
            + (" Trainers set it where tokens were added." if _VOCABULARY.search(str(modules)) else ""),
            "Leave modules_to_save out and put these modules into target_modules; added tokens cannot be served.",
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield _unsupported(
            "init-lora-weights",
            f"init_lora_weights is {init!r}, which changes the base's weights; vLLM serves it unchanged.",
            "Set init_lora_weights: true, or save the trained adapter with PEFT's "
            "path_initial_model_for_weight_conversion.",
        )
    for key, meaning in _VARIANTS.items():
        if config.get(key):
            yield _unsupported(
                key.replace("_", "-"), f"{key} is set; vLLM does not serve {meaning}.", f"Leave {key} out."
            )


def rank_of(module_name: str, config: dict[str, Any]) -> Any:
    """Rank of a module: that of the first rank pattern matching the end of its name, else `r`."""
    return _of_pattern(module_name, config.get("rank_pattern"), config.get("r", 8))


def scaling_of(module_name: str, config: dict[str, Any]) -> float:
    """Factor that B A is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA (https://arxiv.org/abs/2312.03732)."""
    rank = rank_of(module_name, config)
    alpha = float(_of_pattern(module_name, config.get("alpha_pattern"), config.get("lora_alpha", 8)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of_pattern(module_name: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """PEFT's rule (peft.utils.other, `get_pattern_key`): the first pattern that matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if _ends_names(pattern).match(module_name):
            return value
    return default


def _check_ranks(config: dict[str, Any], max_lora_rank: int) -> Iterator[LintFinding]:
    pattern = config.get("rank_pattern") or {}
    if not _is_map_of_plain_patterns(pattern):
        yield LintFinding(
            "error",
            "rank-pattern",
            f"rank_pattern must map plain patterns to ranks; got {str(pattern)[:200]}.",
            "Leave it out.",
        )
        return
    ranks = {"r": config.get("r", 8)} | {f"rank_pattern[{key!r}]": rank for key, rank in pattern.items()}
    for key, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            yield LintFinding("error", "rank", f"{key} is {rank!r}; it must be a positive integer.", "Set r: 16.")
        elif rank > max_lora_rank:
            yield _unsupported(
                "rank",
                f"{key} is {rank}; the server's max_lora_rank is {max_lora_rank}.",
                f"Train with r up to {max_lora_rank}"
                + (f", or serve with a max_lora_rank of {rank} or more." if rank <= MAX_LORA_RANK else "."),
            )


def _check_alphas(config: dict[str, Any]) -> Iterator[LintFinding]:
    pattern = config.get("alpha_pattern") or {}
    if not _is_map_of_plain_patterns(pattern):
        yield LintFinding(
            "error",
            "alpha-pattern",
            f"alpha_pattern must map plain patterns to numbers; got {str(pattern)[:200]}.",
            "Leave it out.",
        )
        return
    alphas = {"lora_alpha": config.get("lora_alpha", 8)} | {
        f"alpha_pattern[{key!r}]": alpha for key, alpha in pattern.items()
    }
    for key, alpha in alphas.items():
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= _MAX_ALPHA:
            yield LintFinding("error", "lora-alpha", f"{key} is {alpha!r}; it must be a number.", "Set lora_alpha: 32.")
    if alphas["lora_alpha"] == 0:
        yield LintFinding("warning", "no-op", "lora_alpha is 0, so the adapter changes nothing.", "Set lora_alpha: 32.")


def _is_map_of_plain_patterns(pattern: Any) -> bool:
    return isinstance(pattern, dict) and len(pattern) <= _MAX_PATTERNS and all(map(_is_harmless_regex, pattern))


def _is_harmless_regex(pattern: str) -> bool:
    """Whether RE2, which matches in linear time, interprets the pattern as PEFT does; no repeated groups."""
    if len(pattern) > _MAX_PATTERN_CHARS or _UNLIKE_PEFT.search(pattern):
        return False
    try:
        re.compile(pattern)
        _ends_names(pattern)
    except (re.error, re2.error, RecursionError, OverflowError, UnicodeEncodeError):
        return False
    return True


@lru_cache(maxsize=2 * _MAX_PATTERNS)
def _ends_names(pattern: str) -> "re2._Regexp":
    """Compile a pattern for name ends, equivalent to PEFT's expression, that matches in linear time."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PATTERN_MEM_BYTES
    return re2.compile(rf"(.*\.)?({pattern})$", options)


def _unsupported(code: str, message: str, fix: str) -> LintFinding:
    return LintFinding("error", code, message, fix, is_unsupported=True)
