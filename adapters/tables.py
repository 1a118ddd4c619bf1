"""Terminal tables: versions of the store, one version, and an adapter's history."""

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from adapters.reference import Target
from adapters.release.traffic import CANARY_ALIAS, Split
from adapters.scores import Score
from adapters.store.evaluation_records import ObjectiveScore
from adapters.store.history import Event
from adapters.store.manifest import Combination, DatasetRef, Manifest, RequestDefaults, VersionRef
from adapters.store.store import AdapterStore


def versions_table(store: AdapterStore, targets: list[Target]) -> Table:
    """One line per version, within 80 columns; `show` has the details."""
    table = Table("version", "aliases", "base", "r", "base score", "score", "n", box=SIMPLE_HEAD)
    for target in targets:
        manifest = store.manifest(target)
        scores = manifest.evaluation
        table.add_row(
            manifest.lora_name,
            ", ".join(labels(store, target)),
            manifest.base.name,
            str(manifest.lora.lora_r) if manifest.lora.lora_r else "-",
            f"{scores.base.value:.2f}" if scores else "-",
            f"{scores.adapter.value:.2f}" if scores else "-",
            str(scores.adapter.n) if scores else "-",
        )
    return table


def labels(store: AdapterStore, target: Target) -> list[str]:
    """Aliases (the canary's with its traffic share), pin and quarantine of a version."""
    aliases = sorted(alias for alias, version in store.aliases(target.name).items() if version == target.version)
    split = store.split(target.name)
    shown = [f"{alias} {split}" if alias == CANARY_ALIAS and split != Split() else alias for alias in aliases]
    marks = {"pinned": store.pins(target.name), "quarantined": store.quarantined(target.name)}
    return [*shown, *(mark for mark, versions in marks.items() if target.version in versions)]


def manifest_table(store: AdapterStore, target: Target) -> Table:
    manifest = store.manifest(target)
    table = Table("what", Column(overflow="fold"), title=manifest.lora_name, show_header=False, box=SIMPLE_HEAD)
    rows = {"aliases": ", ".join(labels(store, target)) or "-"} | _manifest_rows(manifest)
    if out := store.quarantined(target.name).get(target.version):
        rows["quarantined"] = f"since {out.since}: {out.reason}"
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def history_table(store: AdapterStore, name: str) -> Table:
    head = (Column("at", no_wrap=True), "event", "version", "alias", "previous", "reason")
    table = Table(*head, title=f"history of {name}", box=SIMPLE_HEAD)
    for event in store.history(name):
        version, previous = str(event.version or ""), str(event.previous or "")
        table.add_row(event.at[:16], event.kind, version, event.alias, previous, _reason(event))
    return table


def version_record(store: AdapterStore, target: Target) -> dict[str, Any]:
    """The manifest, and what changes with time: aliases of the version, and the adapter's history."""
    return store.manifest(target).model_dump(mode="json") | {
        "aliases": labels(store, target),
        "history": [event.model_dump(mode="json", exclude_none=True) for event in store.history(target.name)],
    }


def _manifest_rows(manifest: Manifest) -> dict[str, str]:
    lora, dataset, evaluation = manifest.lora, manifest.dataset, manifest.evaluation
    return {
        "description": manifest.description,
        "origin": manifest.origin,
        "created": manifest.created_at,
        "digest": manifest.digest,
        "base": f"{manifest.base.name} ({manifest.base.quantization}, {manifest.base.digest[:12]})",
        lora.kind: lora.described,
        "defaults": _defaults(manifest.defaults),
        "data": _data(manifest.name, dataset),
        "rows from": _files(dataset),
        "trained in": f"{manifest.training.duration_s:.0f} s on {manifest.training.device}"
        if manifest.training
        else "-",
        "base score": _score(evaluation.base if evaluation else None),
        "adapter score": _score(evaluation.adapter if evaluation else None),
        "valid format": _score(evaluation.valid_format if evaluation else None),
    } | {
        **_started_from(manifest.started_from),
        **{name: _objective_score(score) for name, score in manifest.scores.items()},
        **_combination_rows(manifest.combination),
        **_gates(manifest),
    }


def _gates(manifest: Manifest) -> dict[str, str]:
    """A line each; none where nothing was judged."""
    lines = [f"{'met' if gate.is_met else 'NOT met'}: {gate.finding}" for gate in manifest.gates]
    return {"gates": "\n".join(lines)} if lines else {}


def _started_from(start: VersionRef | None) -> dict[str, str]:
    return {} if start is None else {"started from": f"{start.lora_name} ({start.digest[:12]})"}


def _objective_score(score: ObjectiveScore) -> str:
    base = "" if score.base is None else f", base {score.base.value:.3f}"
    adapter = score.adapter
    return f"{adapter.value:.3f} ({adapter.ci_low:.3f} to {adapter.ci_high:.3f}, n={adapter.n}){base}"


def _combination_rows(combination: Combination | None) -> dict[str, str]:
    if combination is None:
        return {}
    density = "" if combination.density is None else f", density {combination.density:g}"
    sources = [f"{source.weight:g} of {source.lora_name} ({source.digest[:12]})" for source in combination.sources]
    return {
        "combined from": ", ".join(sources),
        "combined by": combination.method + density,
    } | {
        f"score on {domain}": f"{_score(scores.adapter)}, base {scores.base.value:.2f}"
        for domain, scores in combination.evaluations.items()
    }


def _data(name: str, dataset: DatasetRef | None) -> str:
    """`support.jsonl 1, 512 examples, datasets/support/0a1b2c3d4e5f`, the folder under the state folder."""
    if dataset is None:
        return "-"
    where = f"datasets/{name}/{dataset.digest[:12]}" if dataset.digest else dataset.dataset_sha256[:12]
    return f"{dataset.source}, {dataset.num_train} examples, {where}"


def _files(dataset: DatasetRef | None) -> str:
    """`support.jsonl (48,123 bytes, SHA-256 0a1b2c3d4e5f)`, a line each."""
    files = dataset.files if dataset else ()
    lines = [f"{file.name} ({file.size_bytes:,} bytes, SHA-256 {file.sha256[:12]})" for file in files]
    return "\n".join(lines) or "-"


def _defaults(defaults: RequestDefaults | None) -> str:
    """`system "Answer in JSON."; temperature 0.0; stop ["}"]`."""
    given = defaults.given if defaults else {}
    return "; ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in given.items()) or "-"


def _reason(event: Event) -> str:
    """The new split or the verdict, if any, followed by the reason."""
    if event.kind == "judged":
        return f"{event.action}: {event.reason}"
    if event.kind != "split":
        return event.reason
    split = Split(event.canary_weight or 0.0, bool(event.is_shadow))
    return f"{CANARY_ALIAS} {split}" + (f": {event.reason}" if event.reason else "")


def _score(score: Score | None) -> str:
    """`0.73 (0.67 to 0.78, n 240)`."""
    if score is None:
        return "-"
    return f"{score.value:.2f} ({score.ci_low:.2f} to {score.ci_high:.2f}, n {score.n})"
