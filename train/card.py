"""The model card of an adapter version: `README.md` with the metadata that model hubs read."""

import json
from pathlib import Path

import yaml

from adapters.scores import Score
from adapters.store.manifest import ManifestDraft, RequestDefaults, TrainingRecord

CARD_FILE = "README.md"
PLAIN_USER = "{input}"


def write_model_card(draft: ManifestDraft, folder: Path, *, user: str = PLAIN_USER) -> None:
    """Write `README.md`, replacing PEFT's empty template."""
    (folder / CARD_FILE).write_text(model_card(draft, user=user), encoding="utf-8")


def model_card(draft: ManifestDraft, *, user: str = PLAIN_USER) -> str:
    """The card's text: purpose, provenance, quality and request format of the adapter.

    Args:
        user: Template of the user turn that it was trained on, with `{input}` for the input.
    """
    front = {"base_model": draft.base.name, "library_name": "peft", "tags": ["lora", "lorikeet"]}
    figures = [*_evaluation(draft), *_combination(draft), *_forgetting(draft), *_training(draft)]
    sections = [f"# {draft.name}", draft.description, *request_section(draft.defaults, user=user), *figures]
    return f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n\n" + "\n\n".join(sections) + "\n"


def request_section(defaults: RequestDefaults | None, *, user: str = PLAIN_USER) -> list[str]:
    """Paragraphs on the version's request defaults; none if it has no defaults."""
    if defaults is None:
        return []
    lines = [f"- {name}: `{json.dumps(value, ensure_ascii=False)}`" for name, value in defaults.given.items()]
    lines += [f"- user turn, which the client writes: `{user}`"] if user != PLAIN_USER else []
    return ["## Request", "The server fills in fields that a request leaves out:", "\n".join(lines)]


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
    is_greedy = draft.defaults is None or not draft.defaults.temperature
    how = "greedy" if is_greedy else "sampled once each, as above"
    return ["## Evaluation", f"{evaluation.adapter.n} held-out examples, {how}.", "\n".join(table)]


def _combination(draft: ManifestDraft) -> list[str]:
    combination = draft.combination
    if combination is None:
        return []
    lines = [f"- {source.weight:g} of `{source.lora_name}`, digest `{source.digest}`" for source in combination.sources]
    density = "" if combination.density is None else f" with density {combination.density:g}"
    sections = ["## Combination", f"By `{combination.method}`{density}, of:", "\n".join(lines)]
    if combination.evaluations:
        table = ["| domain | base | combination (95% interval) | n |", "|---|---|---|---|"]
        table += [
            f"| {domain} | {scores.base.value:.1%} | {_percent(scores.adapter)} | {scores.adapter.n} |"
            for domain, scores in combination.evaluations.items()
        ]
        sections.append("\n".join(table))
    return sections


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
        lines += _template_date(draft.training)
    return ["## Training", "\n".join(lines)]


def _template_date(training: TrainingRecord) -> list[str]:
    if training.template_time is None:
        return []
    is_varied = training.arguments.get("template_date") == "varied"
    trained = "in training another one for each example" if is_varied else "in training, too"
    return [f"- Date that the chat template wrote: {training.template_time:%Y-%m-%d} in evaluation, {trained}"]


def _percent(score: Score) -> str:
    return f"{score.value:.1%} ({score.ci_low:.1%} to {score.ci_high:.1%})"
