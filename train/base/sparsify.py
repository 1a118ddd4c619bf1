"""`lorikeet base sparsify`: a base with a share of its linear layers' weights set to zero, without training again.

`magnitude` removes the smallest weights (https://arxiv.org/abs/1506.02626). `wanda` weighs each weight with the norm of
its input on calibration text (https://arxiv.org/abs/2306.11695); layers are pruned in the order in which they compute,
so each sees the inputs that the pruned layers before it give.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adapters.bases import verify_base
from adapters.store.evaluation_records import Evaluation
from adapters.store.manifest import BaseLineage, BaseManifest, SparsityRecord
from config.dataset import read_dataset, read_split
from config.home import Home
from train.base.derived import next_name, write_derived_base
from train.base.prepare import base_folder
from train.base.quantize import load_causal_lm
from train.data.encode import encode
from train.data.general import FORGETTING_TEXT
from train.errors import PrepareBaseError
from train.evaluate.local import evaluate, measure_forgetting
from train.methods.targets import VOCABULARY

SparsityMethod = Literal["magnitude", "wanda"]

_ROW_TOKENS = 128
_MAX_ROWS = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pattern:
    """A share of the weights of each row, or `n` zeros in each `m` weights that follow each other."""

    share: float
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.share:g}"


def parse_pattern(text: str) -> Pattern:
    """`0.5`, or `2:4`.

    Raises:
        PrepareBaseError: It is neither.
    """
    n, colon, m = text.partition(":")
    try:
        if colon and 0 < int(n) < int(m):
            return Pattern(int(n) / int(m), int(n), int(m))
        if not colon and 0 < float(text) < 1:
            return Pattern(float(text))
    except ValueError:
        pass
    raise PrepareBaseError(f"`--sparsity` must be a share between 0 and 1, as 0.5, or N:M, as 2:4; got {text!r}.")


def sparsify_base(
    name: str,
    home: Home,
    method: SparsityMethod,
    pattern: Pattern,
    *,
    new_name: str | None = None,
    calibration: str | None = None,
    domains: Sequence[str] = (),
) -> BaseManifest:
    """Prune a base into a new one, `<name>-<method>-1` or `new_name`.

    Args:
        calibration: Domain whose training rows `wanda` runs; None: general English text.
        domains: Domains whose held-out questions are asked before and after.

    Raises:
        PrepareBaseError: The base cannot be pruned, or another one has the new name.
        AdapterError: The base is missing or changed.
    """
    parent_folder = home.bases / name
    parent = verify_base(parent_folder)
    folder = base_folder(home, new_name or next_name(home.bases, f"{name}-{method}"))
    if parent.storage == "bitsandbytes":
        raise PrepareBaseError(
            f"Base {name!r} stores bitsandbytes tensors, which have no zeros to save. Prepare it with `--storage "
            "dequantized`, or `--quantization none`."
        )
    if folder.exists():
        raise PrepareBaseError(f"Base {folder.name!r} already exists. Choose another `--name`.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(parent_folder)
    for domain in (*domains, *([] if calibration is None else [calibration])):
        read_dataset(home.datasets / domain)  # before the base loads
    rows = _calibration_rows(tokenizer, home, calibration)
    model = load_causal_lm(parent_folder)
    model.eval()
    prune(model, method, pattern, rows)
    forgetting = measure_forgetting(model, tokenizer)
    lineage = BaseLineage(
        parent=parent.ref,
        made_by=method,
        forgetting=forgetting,
        sparsity=_record(model, pattern, parent, forgetting.base_nll, forgetting.adapter_nll),
        evaluations={domain: _evaluation(model, tokenizer, home.datasets / domain) for domain in domains},
    )
    manifest = write_derived_base(folder, model, parent, lineage, parent_folder)
    logger.info("base %s: %s of %s weights set to zero by %s", manifest.name, pattern, name, method)
    return manifest


@torch.inference_mode()
def prune(model: PreTrainedModel, method: SparsityMethod, pattern: Pattern, rows: torch.Tensor) -> None:
    """Set weights of all linear layers but the output layer to zero.

    Args:
        rows: (N, T) token ids for `wanda`.

    Raises:
        PrepareBaseError: A layer's inputs are no multiple of the pattern's group.
    """
    layers = {
        layer: name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] not in VOCABULARY
    }
    for layer, name in layers.items():
        if pattern.m and layer.in_features % pattern.m:
            raise PrepareBaseError(
                f"{name} has {layer.in_features} inputs, no multiple of {pattern.m}. Choose a share, as 0.5."
            )
    if method == "magnitude":
        for layer in layers:
            layer.weight.mul_(kept(layer.weight.float().abs(), pattern))
        return
    hooks = [layer.register_forward_pre_hook(_pruner(pattern)) for layer in layers]
    try:
        model.get_decoder()(input_ids=rows.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def kept(importance: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mask (out_features, in_features) of the most important weights of each row, or of each group in it."""
    num_rows, num_columns = importance.shape
    groups = importance.view(num_rows, -1, pattern.m) if pattern.m else importance.view(num_rows, 1, num_columns)
    num_zero = pattern.n if pattern.m else round(pattern.share * num_columns)
    least = groups.argsort(dim=-1, stable=True)[..., :num_zero]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, least, False).view(num_rows, num_columns)


def _pruner(pattern: Pattern) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    def prune_before(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, torch.nn.Linear)
        norms = inputs[0].reshape(-1, layer.in_features).float().norm(dim=0)
        layer.weight.mul_(kept(layer.weight.float().abs() * norms, pattern))

    return prune_before


def _calibration_rows(tokenizer: PreTrainedTokenizerBase, home: Home, domain: str | None) -> torch.Tensor:
    """(N, T): without padding, which would count as input."""
    if domain is None:
        ids = list(tokenizer(FORGETTING_TEXT, add_special_tokens=False)["input_ids"])
    else:
        at = datetime(2026, 1, 1, 12)  # only in templates that write the date; any will do
        rows = read_split(home.datasets / domain, "train")
        ids = [token for row in rows for token in encode(tokenizer, row.messages, at, row.tools).input_ids]
    length = min(_ROW_TOKENS, len(ids))
    count = min(_MAX_ROWS, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


def _evaluation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Evaluation:
    dataset, rows = read_dataset(folder), read_split(folder, "test")
    return evaluate(model, tokenizer, dataset, rows, datetime(2026, 1, 1, 12)).evaluation


def _record(
    model: PreTrainedModel, pattern: Pattern, parent: BaseManifest, base_nll: float, nll: float
) -> SparsityRecord:
    size_bytes = sum(file.size_bytes for file in parent.files if file.path.endswith(".safetensors"))
    weights = [
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] not in VOCABULARY
    ]
    num_weights, num_zero = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    return SparsityRecord(
        pattern=str(pattern),
        share_zero=round(num_zero / num_weights, 4),
        size_bytes=size_bytes,
        compressed_bytes=size_bytes - num_zero * 2 + num_weights // 8,
        base_perplexity=round(math.exp(base_nll), 3),
        perplexity=round(math.exp(nll), 3),
    )
