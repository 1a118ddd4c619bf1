"""What helps against forgetting: trains the demo's legal domain under one remedy, and prints a table of all tried.

`python -m train.bench_remedies HOME REMEDY` trains and adds a line to `HOME/remedies.jsonl`; without REMEDY it prints
the table. Not run as a whole yet: docs/evaluation.md has the remedies, but no results.
"""

import json
import sys
import time
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

from adapters.store.manifest import ManifestDraft
from config.domain import DomainConfig
from config.home import Home
from config.load import load_domain
from config.packaged import default_file
from train.gained_lost import text_losses
from train.shell import console, shell

DOMAIN = "legal"
NUM_STEPS = 60
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "learning_rate 3e-4": {"recipe": {"learning_rate": 3e-4}},
    "r 4": {"method": {"r": 4, "lora_alpha": 8}},
    "lora_alpha 8": {"method": {"lora_alpha": 8}},
    "lora_dropout 0.1": {"method": {"lora_dropout": 0.1}},
    "weight_decay 0.1": {"recipe": {"weight_decay": 0.1}},
    "q_proj and v_proj alone": {"method": {"target_modules": ["q_proj", "v_proj"]}},
    "replay_share 0.1": {"recipe": {"replay_share": 0.1}},
    "replay_share 0.25": {"recipe": {"replay_share": 0.25}},
    "replay_share 0.25, learning_rate 3e-4": {"recipe": {"replay_share": 0.25, "learning_rate": 3e-4}},
    "init_lora_weights corda": {"method": {"init_lora_weights": "corda"}},
    "init_lora_weights mica": {"method": {"init_lora_weights": "mica"}},
    "method oft": {"method": {"name": "oft"}},
    "method psoft": {"method": {"name": "psoft"}},
}
_COLUMNS = ("remedy", "exact match", "texts: nats", "perplexity", "cloze", "arithmetic", "instructions", "seconds")


def domain_of(remedy: dict[str, Any]) -> DomainConfig:
    """The demo's legal domain with the remedy's settings."""
    fields = load_domain(default_file(f"domains/{DOMAIN}.yaml")).model_dump(mode="json", exclude_unset=True)
    method = remedy.get("method", {})
    fields["method"] = method if "name" in method else fields["method"] | method
    fields["recipe"] |= {"max_steps": NUM_STEPS, "eval_steps": NUM_STEPS // 2}
    if "name" in method:  # another method has its own usual rate
        fields["recipe"].pop("learning_rate")
    fields["recipe"] |= remedy.get("recipe", {})
    fields["evaluation"] |= {"forgetting": {"other_domains": "none"}, "overfitting": {"num_rows": 0}}
    return DomainConfig.model_validate(fields)


def line_of(name: str, record: ManifestDraft, seconds: float) -> dict[str, Any]:
    """The figures that the table shows."""
    figures = {figure.key: figure for figure in record.figures}
    nats = fmean(text_losses(record.figures))
    tasks = {task: figures[f"forgetting[{task}]"] for task in ("cloze", "arithmetic", "instructions")}
    own = figures["exact_match"]
    return {
        "remedy": name,
        "exact match": f"{own.adapter.value:.1%}",
        "texts: nats": f"{nats:+.3f}",
        "perplexity": f"{exp(nats):.2f} times",
        **{task: f"{f.base.value if f.base else 0:.0%} to {f.adapter.value:.0%}" for task, f in tasks.items()},
        "seconds": f"{seconds:.0f}",
        "figures": [figure.model_dump(mode="json") for figure in record.figures],
    }


def measure(name: str, home: Home) -> dict[str, Any]:
    """Train, evaluate and publish under one remedy."""
    from train.pipeline import train_and_publish  # torch reads how its threads wait when it is imported

    started = time.monotonic()
    record = train_and_publish(domain_of(REMEDIES[name]), home, console=console).record
    assert record.training is not None
    return line_of(name, record, record.training.duration_s) | {"total_s": round(time.monotonic() - started, 1)}


def main() -> None:
    home, results = Home(Path(sys.argv[1])), Path(sys.argv[1]) / "remedies.jsonl"
    with shell():
        for name in sys.argv[2:]:
            line = measure(name, home)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    lines = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    print(" | ".join(_COLUMNS))
    for line in lines:
        print(" | ".join(line[column] for column in _COLUMNS))


if __name__ == "__main__":
    main()
