"""`lorikeet adapters merge`: a weighted combination of versions, evaluated and published as a version."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters.errors import BaseModelMismatchError
from adapters.fingerprint import GoldenPrompt, read_fingerprint
from adapters.lint.base_modules import read_base_modules
from adapters.lint.peft_folder import CONFIG_FILE, PREFIX, WEIGHTS_FILE, read_adapter_config, read_lora_spec
from adapters.store.evaluation_records import Evaluation
from adapters.store.manifest import Combination, CombinedSource, CombineMethod, Manifest, ManifestDraft, RequestDefaults
from adapters.store.store import AdapterStore
from adapters.template_time import noon
from config.dataset import DIGEST_CHARS, DatasetManifest, DatasetRow, Message, read_dataset, read_split
from config.errors import DatasetError
from config.home import Home
from train.base.quantize import load_causal_lm
from train.card import write_model_card
from train.compute import Shape, compute_in, measure_inference
from train.data.encode import encode_prompt
from train.errors import ExportError
from train.evaluate.fingerprint import NUM_GOLDEN_PROMPTS, golden_rows, make_fingerprint, write_fingerprint
from train.evaluate.local import evaluate, measure_forgetting
from train.export.combine_pairs import Weighted, combine, combined_rank
from train.export.version import LoraPair, Version, open_version, read_pairs

METHODS: tuple[CombineMethod, ...] = get_args(CombineMethod)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedVersion:
    """A version to combine, its weight, and its held-out rows if its data set is here."""

    version: Version
    weight: float
    dataset: DatasetManifest | None
    rows: tuple[DatasetRow, ...]


@dataclass(frozen=True)
class CombineRecipe:
    """How versions are combined.

    Attributes:
        density: Share of the numbers that `ties` and `dare` keep.
    """

    method: CombineMethod
    density: float
    max_lora_rank: int


def parse_weighted(text: str) -> tuple[str, float]:
    """`medical@3:0.7` as reference and weight.

    Raises:
        ExportError: No weight, or one that is not a finite number other than 0.
    """
    reference, _, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not reference or not 0 < abs(weight) < 1e6:
        raise ExportError(f"{text!r} must be a version and its weight, such as 'medical@3:0.7'.")
    return reference, weight


def parse_method(text: str) -> CombineMethod:
    """One of PEFT's combination types.

    Raises:
        ExportError: An unknown one.
    """
    for method in METHODS:
        if method == text:
            return method
    raise ExportError(f"There is no method {text!r}. Choose one of {', '.join(METHODS)}.")


def combine_versions(
    home: Home,
    name: str,
    weighted: Sequence[tuple[str, float]],
    recipe: CombineRecipe,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Publish a combination of versions as the next version of `name`; a failure publishes nothing.

    Args:
        on_stage: Called with each step's name.

    Raises:
        ExportError: Fewer than two versions, or ranks that the method or the server does not take.
        BaseModelMismatchError: The versions are of different bases.
        AdapterError: A version or base is missing or changed, or the store refuses the combination.
    """
    store = AdapterStore(home.adapters)
    store.folders.adapter(name)
    sources = [_open_source(home, reference, weight) for reference, weight in weighted]
    _check_sources(sources)
    parts = [Weighted(str(s.version.target), read_pairs(s.version), s.weight) for s in sources]
    rank = combined_rank(parts, recipe.method)
    _check_rank(rank, recipe)
    on_stage(f"combine {len(sources)} versions by {recipe.method}")
    pairs = combine(parts, recipe.method, recipe.density)
    with tempfile.TemporaryDirectory(prefix="lorikeet-") as temporary:
        folder = Path(temporary)
        _write_peft_folder(folder, sources[0].version, pairs, rank)
        draft = _evaluate_and_describe(folder, name, sources, recipe, on_stage)
        write_model_card(draft, folder)
        return store.publish(folder, draft, base_folder=sources[0].version.base_folder)


def _open_source(home: Home, reference: str, weight: float) -> WeightedVersion:
    version = open_version(home, reference)
    dataset = _read_own_dataset(home, version)
    if dataset is None:
        logger.warning("%s: its data set is not here, so the combination is not evaluated on it", version.target)
        return WeightedVersion(version, weight, None, ())
    folder, manifest = dataset
    return WeightedVersion(version, weight, manifest, tuple(read_split(folder, "test")))


def _read_own_dataset(home: Home, version: Version) -> tuple[Path, DatasetManifest] | None:
    """The data set that a version was trained on; another one of its name may hold trained rows in its test split."""
    ref = version.manifest.dataset
    if ref is None:
        return None
    domain = home.datasets / version.target.name
    for folder in (domain / ref.digest[:DIGEST_CHARS] if ref.digest else domain, domain):
        try:
            manifest = read_dataset(folder)
        except DatasetError:
            continue
        if manifest.dataset_sha256 == ref.dataset_sha256 and manifest.type == "prompt_completion":
            return folder, manifest
    return None


def _check_sources(sources: Sequence[WeightedVersion]) -> None:
    targets = [source.version.target for source in sources]
    if len(set(targets)) < 2 or len(set(targets)) < len(targets):
        raise ExportError(f"Give two or more different versions; got {', '.join(map(str, targets)) or 'none'}.")
    bases = {str(source.version.target): source.version.manifest.base for source in sources}
    if len({base.digest for base in bases.values()}) > 1:
        shown = ", ".join(f"{target} on {base.name} {base.digest[:12]}" for target, base in bases.items())
        raise BaseModelMismatchError(f"Only versions of one base can be combined; got {shown}.")
    kinds = {str(s.version.target): bool(_config(s).get("fan_in_fan_out")) for s in sources}
    if len(set(kinds.values())) > 1:
        raise ExportError(f"fan_in_fan_out differs: {kinds}. Such versions cannot be combined.")


def _check_rank(rank: int, recipe: CombineRecipe) -> None:
    if rank > recipe.max_lora_rank:
        raise ExportError(
            f"{recipe.method} gives rank {rank}; the server's max_lora_rank is {recipe.max_lora_rank}. Use `--method "
            f"svd`, or serve with max_lora_rank {rank} or more and give it as `--max-lora-rank`."
        )


def _write_peft_folder(folder: Path, version: Version, pairs: Mapping[str, LoraPair], rank: int) -> None:
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # a scaling of 1: the weights are in A and B
        target_modules=_target_modules(version.base_folder, set(pairs)),
        fan_in_fan_out=bool(read_adapter_config(version.folder).get("fan_in_fan_out")),
        base_model_name_or_path=version.base.name,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    save_file(dict(_tensors(pairs, rank)), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _target_modules(base_folder: Path, layers: set[str]) -> list[str]:
    """Short names if they mean exactly these layers, otherwise full names."""
    short = {layer.rpartition(".")[2] for layer in layers}
    meant = {module for module in read_base_modules(base_folder) if module.rpartition(".")[2] in short}
    return sorted(short if meant == layers else layers)


def _tensors(pairs: Mapping[str, LoraPair], rank: int) -> list[tuple[str, Tensor]]:
    """PEFT's names; lower ranks are filled up with zeros."""
    found = []
    for layer, pair in pairs.items():
        missing = rank - len(pair.lora_a)
        lora_a = torch.nn.functional.pad(pair.lora_a, (0, 0, 0, missing))
        lora_b = torch.nn.functional.pad(pair.lora_b, (0, missing))
        for side, tensor in (("A", lora_a), ("B", lora_b)):
            end = f"lora_embedding_{side}" if pair.is_embedding else f"lora_{side}.weight"
            found.append((f"{PREFIX}{layer}.{end}", tensor.to(torch.bfloat16).contiguous()))
    return found


def _evaluate_and_describe(
    folder: Path, name: str, sources: Sequence[WeightedVersion], recipe: CombineRecipe, on_stage: Callable[[str], None]
) -> ManifestDraft:
    """Load the combination, score it on each domain's held-out rows, and write its fingerprint."""
    base = sources[0].version.base
    on_stage(f"load {base.name}")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(sources[0].version.base_folder)
    model = PeftModel.from_pretrained(load_causal_lm(sources[0].version.base_folder), str(folder)).eval()
    at = _template_time(sources)
    evaluations = {}
    for source in sources:
        if source.dataset is not None:
            on_stage(f"evaluate on {len(source.rows)} held-out rows of {source.dataset.domain}")
            evaluations[source.dataset.domain] = _evaluate(model, tokenizer, source.dataset, source.rows, at)
    if rows := _golden_rows(sources, tokenizer):
        write_fingerprint(make_fingerprint(model, tokenizer, base, rows, at), folder)
    return ManifestDraft(
        name=name,
        base=base.ref,
        lora=read_lora_spec(folder),
        origin="combined",
        description="; ".join(f"{s.weight:g} of {s.version.target}" for s in sources),
        forgetting=measure_forgetting(model, tokenizer),
        defaults=_common_defaults([s.version.manifest.defaults or RequestDefaults() for s in sources]),
        combination=Combination(
            method=recipe.method,
            density=recipe.density if "ties" in recipe.method or "dare" in recipe.method else None,
            sources=tuple(
                CombinedSource(lora_name=str(s.version.target), digest=s.version.manifest.digest, weight=s.weight)
                for s in sources
            ),
            evaluations=evaluations,
        ),
    )


def _evaluate(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetManifest,
    rows: Sequence[DatasetRow],
    at: datetime,
) -> Evaluation:
    lengths = sorted(len(encode_prompt(tokenizer, row.prompt, at, row.tools)) for row in rows)
    prompts = Shape(len(rows), lengths[len(rows) // 2])
    compute_in(model, measure_inference(model, prompts, dataset.evaluation.max_new_tokens))
    return evaluate(model, tokenizer, dataset, rows, at).evaluation


def _template_time(sources: Sequence[WeightedVersion]) -> datetime:
    """That of the first version whose fingerprint has one."""
    found = [read_fingerprint(source.version.folder) for source in sources]
    times = [each.template_time for each in found if each is not None and each.template_time is not None]
    return times[0] if times else noon(date.today())


def _golden_rows(sources: Sequence[WeightedVersion], tokenizer: PreTrainedTokenizerBase) -> list[DatasetRow]:
    """Held-out rows of every source in turn; of a source whose data set is not here, its fingerprint's prompts."""
    wanted = NUM_GOLDEN_PROMPTS // len(sources) + 1
    per_source = [
        golden_rows(source.rows, wanted) if source.rows else _rows_of_fingerprint(source.version, tokenizer)
        for source in sources
    ]
    in_turn = [rows[place] for place in range(wanted) for rows in per_source if place < len(rows)]
    return in_turn[: max(NUM_GOLDEN_PROMPTS, len(sources))]


def _rows_of_fingerprint(version: Version, tokenizer: PreTrainedTokenizerBase) -> list[DatasetRow]:
    fingerprint = read_fingerprint(version.folder)
    return [_row_of(prompt, tokenizer) for prompt in fingerprint.prompts] if fingerprint else []


def _row_of(prompt: GoldenPrompt, tokenizer: PreTrainedTokenizerBase) -> DatasetRow:
    answer = str(tokenizer.decode(list(prompt.answer_token_ids), skip_special_tokens=True))
    turns = (*map(Message.model_validate, prompt.messages), Message(role="assistant", content=answer))
    asked = next((turn.content for turn in reversed(turns[:-1]) if turn.role == "user"), "")
    return DatasetRow(messages=turns, tools=prompt.tools, input=asked, output=answer)


def _common_defaults(defaults: Sequence[RequestDefaults]) -> RequestDefaults | None:
    """The fields that all versions agree on; with different system prompts, the client must send its domain's."""
    fields = [each.given for each in defaults]
    common = {name: value for name, value in fields[0].items() if all(each.get(name) == value for each in fields)}
    return RequestDefaults.model_validate(common) if common else None


def _config(source: WeightedVersion) -> dict[str, Any]:
    return read_adapter_config(source.version.folder)
