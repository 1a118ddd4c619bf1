"""The model card of an adapter version: `README.md`, in the form that model hubs read."""

from pathlib import Path

import yaml

from adapters.manifest import ManifestDraft, Score

CARD_FILE = "README.md"


def write_model_card(draft: ManifestDraft, folder: Path) -> None:
    """Write `README.md`, over the empty form that PEFT leaves."""
    (folder / CARD_FILE).write_text(model_card(draft), encoding="utf-8")


def model_card(draft: ManifestDraft) -> str:
    """What the adapter does, what it was made from, and how good it is."""
    front = {"base_model": draft.base.name, "library_name": "peft", "tags": ["lora", "lorikeet"]}
    sections = [f"# {draft.name}", draft.description, *_evaluation(draft), *_forgetting(draft), *_training(draft)]
    return f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n\n" + "\n\n".join(sections) + "\n"


def _evaluation(draft: ManifestDraft) -> list[str]:
    evaluation = draft.evaluation
    if evaluation is None:
        return []
    rows = [
        ("base, zero-shot", evaluation.base, evaluation.base_valid_format),
        ("adapter", evaluation.adapter, evaluation.valid_format),
    ]
    table = [f"| | {evaluation.metric} (95% interval) | valid format |", "|---|---|---|"]
    table += [f"| {name} | {_percent(score)} | {valid.value:.1%} |" for name, score, valid in rows]
    return ["## Evaluation", f"{evaluation.adapter.n} held-out examples, greedy.", "\n".join(table)]


def _forgetting(draft: ManifestDraft) -> list[str]:
    forgetting = draft.forgetting
    if forgetting is None:
        return []
    return [
        f"General English ({forgetting.num_tokens} tokens): {forgetting.base_nll:.3f} nats per token without the "
        f"adapter, {forgetting.adapter_nll:.3f} with it."
    ]


def _training(draft: ManifestDraft) -> list[str]:
    lines = [
        f"- Base: `{draft.base.name}`, {draft.base.quantization}, digest `{draft.base.digest}`",
        f"- LoRA: rank {draft.lora.lora_r}, alpha {draft.lora.lora_alpha:g}, on {', '.join(draft.lora.target_modules)}",
    ]
    if draft.dataset is not None:
        lines += [
            f"- Data: {draft.dataset.source}, licence {draft.dataset.licence or 'unknown'}, "
            f"{draft.dataset.num_train} training and {draft.dataset.num_test} test examples, "
            f"SHA-256 `{draft.dataset.dataset_sha256}`"
        ]
    if draft.training is not None:
        lines += [f"- Training: {draft.training.duration_s:.0f} s on {draft.training.device}"]
    return ["## Training", "\n".join(lines)]


def _percent(score: Score) -> str:
    return f"{score.value:.1%} ({score.ci_low:.1%} to {score.ci_high:.1%})"
