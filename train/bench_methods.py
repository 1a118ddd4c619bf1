"""One cell of `lorikeet bench methods`: trains a version of the demo's medical domain, and prints its figures as JSON.

`python -m train.bench_methods HOME CELL`, where CELL is a JSON object: `name` of the adapter, `base`, and `objective`,
`from`, `method` and `recipe` of its YAML; or, with `sparsify`, what makes a sparse base.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config.dataset import DatasetRow, read_split
from config.domain import DomainConfig
from config.home import Home
from config.load import load_domain
from config.packaged import default_file
from train.base.sparsify import parse_pattern, sparsify_base
from train.bench_memory import peak_bytes
from train.data.build import build_dataset
from train.errors import TrainError
from train.pipeline import train_and_publish

DOMAIN = "medical"
NUM_TEST = 100
NOTHING_BESIDE: dict[str, Any] = {
    "forgetting": {"texts": (), "tasks": (), "other_domains": "none"},
    "overfitting": {"num_rows": 0},
}
"""Settings of `evaluation` that measure the domain's own questions alone."""
_SEED = 13


def domain_of(home: Home, cell: dict[str, Any]) -> DomainConfig:
    """Medical with the cell's settings; an objective that needs other rows gets them from medical's."""
    medical = load_domain(default_file(f"domains/{DOMAIN}.yaml"))
    fields = medical.model_dump(mode="json", exclude_unset=True)
    fields["gates"] = {"min_gain": 0}
    fields["data"] = {**fields["data"], "num_test": NUM_TEST}
    fields["evaluation"] = fields["evaluation"] | NOTHING_BESIDE
    recipe = {**fields["recipe"], "max_steps": 20, "eval_steps": 20, **cell.get("recipe", {})}
    if "learning_rate" not in cell.get("recipe", {}):
        recipe.pop("learning_rate")  # each method and objective has a default
    fields |= {"name": cell["name"], "base": cell["base"], "recipe": recipe}
    fields |= {key: cell[key] for key in ("objective", "method", "from") if key in cell}
    kind = cell.get("objective", "sft")
    kind = kind if isinstance(kind, str) else kind["name"]
    if kind in _ROWS_OF:
        path = home.root / f"{kind}.jsonl"
        build_dataset(_plain(medical), home)
        rows = [row for split in ("train", "test") for row in read_split(home.datasets / DOMAIN, split)]
        path.write_text("".join(json.dumps(row) + "\n" for row in _ROWS_OF[kind](rows)), encoding="utf-8")
        sizes = {"num_train": 2000, "num_validation": 64, "num_test": NUM_TEST}
        fields["data"] = {"path": str(path), "out_of_scope_share": 0.0, **sizes}
    return DomainConfig.model_validate(fields)


def _plain(medical: DomainConfig) -> DomainConfig:
    return medical.model_copy(update={"data": medical.data.model_copy(update={"num_test": NUM_TEST})})


def _preference_rows(rows: list[DatasetRow]) -> Iterator[dict[str, Any]]:
    """The right answer, and that of another row."""
    rng, answers = random.Random(_SEED), sorted({row.output for row in rows})
    for row in rows:
        wrong = rng.choice([answer for answer in answers if answer != row.output])
        yield {"prompt": row.input, "chosen": row.output, "rejected": wrong}


def _labelled_rows(rows: list[DatasetRow]) -> Iterator[dict[str, Any]]:
    for number, pair in enumerate(_preference_rows(rows)):
        is_good = number % 2 == 0
        yield {"prompt": pair["prompt"], "completion": pair["chosen" if is_good else "rejected"], "label": is_good}


def _text_rows(rows: list[DatasetRow]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {"text": f"{row.input}: {json.loads(row.output).get('chapter', row.output)}"}


_ROWS_OF = {
    "dpo": _preference_rows,
    "orpo": _preference_rows,
    "reward": _preference_rows,
    "kto": _labelled_rows,
    "text": _text_rows,
}


def main() -> None:
    home, cell = Home(Path(sys.argv[1])), json.loads(sys.argv[2])
    started = time.perf_counter()
    try:
        figures = _sparse(home, cell) if "sparsify" in cell else _trained(home, cell)
    except TrainError as error:
        sys.exit(str(error))
    took = {"total_s": round(time.perf_counter() - started, 1)}
    print(json.dumps(took | {"peak_bytes": peak_bytes()} | figures), flush=True)


def _trained(home: Home, cell: dict[str, Any]) -> dict[str, Any]:
    outcome = train_and_publish(domain_of(home, cell), home, allow_unserved=True)
    record = outcome.record
    training, evaluation, forgetting = record.training, record.evaluation, record.forgetting
    assert training is not None
    conversion = training.conversion
    return {
        "seconds": training.duration_s,
        "trainable_parameters": training.metrics.get("trainable_parameters"),
        "steps": training.metrics.get("steps"),
        "exact_match": evaluation.adapter.model_dump() if evaluation else None,
        "forgotten_nats": round(forgetting.adapter_nll - forgetting.base_nll, 4) if forgetting else None,
        "scores": {name: score.model_dump(mode="json") for name, score in record.scores.items()},
        "conversion_nats": conversion.error_nats if conversion else None,
        "started_from": record.started_from.lora_name if record.started_from else None,
        "served_as": outcome.served_as,
        "name": outcome.name,
    }


def _sparse(home: Home, cell: dict[str, Any]) -> dict[str, Any]:
    """The figures of a sparse base: perplexity of general text and size, before and after."""
    build_dataset(_plain(load_domain(default_file(f"domains/{DOMAIN}.yaml"))), home)
    method, pattern = cell["sparsify"]["method"], parse_pattern(cell["sparsify"]["sparsity"])
    started = time.perf_counter()
    manifest = sparsify_base(cell["base"], home, method, pattern, calibration=DOMAIN, domains=[DOMAIN])
    lineage = manifest.lineage
    assert lineage is not None
    assert lineage.sparsity is not None
    assert lineage.forgetting is not None
    sparsity, forgetting = lineage.sparsity, lineage.forgetting
    figures = {
        "perplexity": (sparsity.base_perplexity, sparsity.perplexity),
        "MB without zeros": (sparsity.size_bytes / 1e6, sparsity.compressed_bytes / 1e6),
    }
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "exact_match": lineage.evaluations[DOMAIN].adapter.model_dump(),
        "forgotten_nats": round(forgetting.adapter_nll - forgetting.base_nll, 4),
        "scores": {name: {"base": {"value": a}, "adapter": {"value": b}} for name, (a, b) in figures.items()},
        "served_as": "a base of its own",
        "name": manifest.name,
    }


if __name__ == "__main__":
    main()
