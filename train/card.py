"""The model card of an adapter version: `README.md` with the metadata that model hubs read."""

import json
from pathlib import Path

import yaml

from adapters.scores import Score
from adapters.store.manifest import ManifestDraft, RequestDefaults, TrainingRecord
from adapters.store.version_files import PLOT_FILE
from train.card_figures import gates_section, metric_section, robustness_section
from train.gained_lost import gained_lost_section, overfitting_section
from train.plots import write_plot

CARD_FILE = "README.md"
PLAIN_USER = "{input}"


def write_model_card(draft: ManifestDraft, folder: Path, *, user: str = PLAIN_USER) -> None:
    """Write `README.md`, replacing PEFT's empty template, and the plot that it shows."""
    has_plot = write_plot(draft, folder)
    (folder / CARD_FILE).write_text(model_card(draft, user=user, has_plot=has_plot), encoding="utf-8")


def model_card(draft: ManifestDraft, *, user: str = PLAIN_USER, has_plot: bool = False) -> str:
    """The card's text: purpose, provenance, quality and request format of the adapter.

    Args:
        user: Template of the user turn that it was trained on, with `{input}` for the input.
        has_plot: Whether `evaluation.svg` lies beside it.
    """
    front = {"base_model": draft.base.name, "library_name": "peft", "tags": ["lora", "lorikeet"]}
    figures = [
        *_evaluation(draft),
        *_scores(draft),
        *_combination(draft),
        *_beside(draft, has_plot=has_plot),
        *gates_section(draft),
        *_training(draft),
    ]
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
    text = f"{evaluation.adapter.n} held-out examples, {how}."
    return ["## Evaluation", text, "\n".join(table), *metric_section(draft.figures), *robustness_section(draft.figures)]


def _scores(draft: ManifestDraft) -> list[str]:
    if not draft.scores:
        return []
    rows = [
        f"| {name} | {_number(score.base)} | {_number(score.adapter)} | {score.adapter.n} |"
        for name, score in draft.scores.items()
    ]
    table = ["| score | base | adapter (95% interval) | n |", "|---|---|---|---|", *rows]
    return ["## Objective", "On the held-out split.", "\n".join(table)]


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


def _beside(draft: ManifestDraft, *, has_plot: bool) -> list[str]:
    """Forgetting and overfitting."""
    sections = [*(gained_lost_section(draft.figures) or _forgetting(draft)), *overfitting_section(draft.figures)]
    return [*sections, f"![Losses, and what was gained and lost]({PLOT_FILE})"] if has_plot else sections


def _forgetting(draft: ManifestDraft) -> list[str]:
    """Of versions without figures."""
    forgetting = draft.forgetting
    if forgetting is None:
        return []
    return [
        f"General English ({forgetting.num_tokens} tokens): {forgetting.base_nll:.3f} nats per token without the "
        f"adapter, {forgetting.adapter_nll:.3f} with it."
    ]


def _training(draft: ManifestDraft) -> list[str]:
    lora = draft.lora
    lines = [
        f"- Base: `{draft.base.name}`, {draft.base.quantization}, digest `{draft.base.digest}`",
        f"- {lora.kind}: {lora.described}",
    ]
    if draft.started_from is not None:
        lines += [f"- Started from `{draft.started_from.lora_name}`, digest `{draft.started_from.digest}`"]
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


def _number(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.3f} ({score.ci_low:.3f} to {score.ci_high:.3f})"


def _percent(score: Score) -> str:
    return f"{score.value:.1%} ({score.ci_low:.1%} to {score.ci_high:.1%})"
