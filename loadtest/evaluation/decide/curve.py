"""The learning curve: `lorikeet train` on parts of the rows, in a state folder of its own for each size.

Each size sees its rows as often as the recipe does: steps are scaled with the rows. What was trained is kept by rows,
recipe and base, so a second run trains nothing, and an interrupted one resumes.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.bases import read_base
from adapters.reference import Target
from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.data import DataGates
from config.dataset import DatasetManifest, split_lines
from config.domain import DomainConfig, GatesConfig
from config.home import Home
from config.private import make_private_folder
from config.training import TrainingConfig
from loadtest.bench.children import child
from loadtest.bench.server import last_lines
from loadtest.errors import TargetError

TrainPart = Callable[[DomainConfig, Home], None]
"""Publishes a version of the domain into a state folder."""

SHARES = (0.1, 0.3, 1.0)
_NOTHING_ELSE = {
    "forgetting": {"texts": [], "tasks": [], "other_domains": "none"},
    "overfitting": {"num_rows": 0},
}
"""Of `evaluation`: a point of the curve is measured on the domain's own questions alone."""
_MIN_ROWS = 4
"""A smaller part tells nothing of training."""


@dataclass(frozen=True)
class CurveSettings:
    """What is trained, and on which rows."""

    config: DomainConfig
    dataset: DatasetManifest
    home: Home
    metric: str


@dataclass(frozen=True)
class TrainedPart:
    """A version trained on so many rows, and its figure by training's own evaluation."""

    num_rows: int
    num_steps: int
    lora_name: str
    figure: FigureRecord
    valid_format: FigureRecord | None
    is_existing: bool


def why_no_curve(settings: CurveSettings) -> str | None:
    """Why parts cannot be trained apart from the user's store; None: they can."""
    config = settings.config
    if not (settings.home.bases / config.base).is_dir():
        return f"the base {config.base!r} is not prepared in {settings.home.bases}"
    if config.from_version is not None:
        return f"training starts from {config.from_version}"
    if getattr(config.objective, "reward_model", None) is not None:
        return "its objective needs a published reward model"
    if len(sizes(settings.dataset.num_train)) < 2:
        return f"{settings.dataset.num_train} training rows are too few to take parts of"
    return None


def sizes(num_train: int) -> list[int]:
    """Numbers of rows of the curve, ascending, all rows last."""
    return sorted({max(round(share * num_train), min(_MIN_ROWS, num_train)) for share in SHARES})


def trained_parts(
    settings: CurveSettings, existing: Manifest | None, say: Callable[[str], None], train: TrainPart
) -> tuple[TrainedPart, ...]:
    """The curve's points, smallest first; all rows are not trained again where `existing` was trained on them.

    Raises:
        TargetError: A training failed, or the domain's file does not give the rows of its data set.
    """
    parts = []
    for num_rows in sizes(settings.dataset.num_train):
        part = None
        if num_rows == settings.dataset.num_train and existing is not None and why_other(settings, existing) is None:
            part = _part(settings, existing, is_existing=True)
        parts.append(part or _trained(settings, num_rows, say, train))
    return tuple(parts)


def why_other(settings: CurveSettings, manifest: Manifest) -> str | None:
    """How a version's training differs from what the data set and the domain's file give; None: it does not."""
    training, dataset = manifest.training, manifest.dataset
    if training is None or dataset is None or dataset.dataset_sha256 != settings.dataset.dataset_sha256:
        return "was trained on other rows, which may include held-out questions"
    if manifest.base.digest != read_base(settings.home.bases / settings.config.base).digest:
        return f"was trained on another base than {settings.config.base!r} is now"
    if TrainingConfig().training_arguments | training.arguments != settings.config.training_arguments:
        return "was trained with other settings than the domain's file has"
    return None


def part_of(config: DomainConfig, num_train: int, num_rows: int) -> DomainConfig:
    """The domain with fewer rows, its steps scaled with them, and without what stops or lengthens a training."""
    share = num_rows / num_train
    paths = {name: _absolute(getattr(config.data, name)) for name in ("path", "held_out", "benchmarks")}
    steps = {name: max(1, round(getattr(config.recipe, name) * share)) for name in ("max_steps", "eval_steps")}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=paths | {"num_train": num_rows, "gates": DataGates()}),
            "documents": (),
            "evaluation": config.evaluation.model_copy(update={"robustness": None}),
            "recipe": config.recipe.model_copy(update=steps | {"report_to": ()}),
            "gates": GatesConfig(),
        }
    )


def _absolute(names: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Paths as another folder's file must name them."""
    given = (names,) if isinstance(names, str) else names
    return given and tuple(name if "://" in name else str(Path(name).absolute()) for name in given)


def _trained(settings: CurveSettings, num_rows: int, say: Callable[[str], None], train: TrainPart) -> TrainedPart:
    config = part_of(settings.config, settings.dataset.num_train, num_rows)
    home = _home(settings, config, num_rows)
    manifest = _newest(home, config.name)
    if manifest is None:
        say(f"trains on {num_rows:,} of {settings.dataset.num_train:,} rows, {config.recipe.max_steps} steps")
        train(config, home)
        manifest = _newest(home, config.name)
    if manifest is None:
        raise TargetError(f"{config.name!r}: training on {num_rows} rows published no version. See {home.root}.")
    _check_same_questions(settings, home)
    part = _part(settings, manifest, is_existing=False)
    if part is None:
        raise TargetError(f"{config.name!r}: training does not score by {settings.metric!r}: no learning curve.")
    return part


def _part(settings: CurveSettings, manifest: Manifest, *, is_existing: bool) -> TrainedPart | None:
    """None: the version was not scored by the metric."""
    assert manifest.dataset is not None
    assert manifest.training is not None
    figures = {figure.key: figure for figure in _figures(manifest)}
    if settings.metric not in figures:
        return None
    return TrainedPart(
        manifest.dataset.num_train,
        int(manifest.training.metrics.get("steps", manifest.training.arguments["max_steps"])),
        manifest.lora_name,
        figures[settings.metric],
        figures.get("valid_format"),
        is_existing,
    )


def _figures(manifest: Manifest) -> tuple[FigureRecord, ...]:
    """Of an older version, exact match and valid format."""
    evaluation = manifest.evaluation
    if manifest.figures or evaluation is None:
        return manifest.figures
    pairs = (
        (evaluation.metric, evaluation.adapter, evaluation.base),
        ("valid_format", evaluation.valid_format, evaluation.base_valid_format),
    )
    return tuple(FigureRecord(kind="metric", metric=name, adapter=own, base=base) for name, own, base in pairs)


def _home(settings: CurveSettings, config: DomainConfig, num_rows: int) -> Home:
    """A state folder of its own, named by what determines the result, with the same base."""
    base = settings.home.bases / config.base
    told: dict[str, Any] = {
        "rows": settings.dataset.dataset_sha256,
        "evaluation": settings.dataset.evaluation.model_dump(mode="json"),
        "base": read_base(base).digest,
        "training": config.training_arguments,
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    own = Home(settings.home.decisions / config.name / f"{num_rows}-{key}")
    make_private_folder(own.root)
    own.bases.mkdir(exist_ok=True)
    own.runs.mkdir(exist_ok=True)
    if not (own.bases / config.base).exists():
        (own.bases / config.base).symlink_to(base.resolve())
    return own


def _newest(home: Home, name: str) -> Manifest | None:
    store = AdapterStore(home.adapters)
    versions = store.versions(name) if home.adapters.is_dir() else []
    return store.manifest(Target(name, versions[-1])) if versions else None


def train_part(config: DomainConfig, home: Home) -> None:
    """Run `lorikeet train`, its output in a file.

    Raises:
        TargetError: It failed; the message ends with its last lines.
    """
    file, log = home.root / f"{config.name}.yaml", home.root / "train.log"
    fields = config.model_dump(mode="json", exclude_unset=True, by_alias=True)
    fields["evaluation"] = fields.get("evaluation", {}) | _NOTHING_ELSE
    file.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    is_begun = any((home.runs / config.name).glob("checkpoint-*/trainer_state.json"))
    words = ["train", str(file), "--home", str(home.root), *(["--resume"] if is_begun else [])]
    with log.open("w") as output, child([sys.executable, "-P", "-m", "lorikeet", *words], output=output) as process:
        process.wait()
    if process.returncode != 0:
        raise TargetError(f"{config.name!r}: training on {config.data.num_train} rows failed.\n{last_lines(log)}")


def _check_same_questions(settings: CurveSettings, home: Home) -> None:
    """Raises TargetError if the held-out rows are others than those that were asked."""
    name = settings.config.name
    asked, evaluated = (
        [json.loads(line) for _, line in split_lines(place.datasets / name, "test")] for place in (settings.home, home)
    )
    if asked != evaluated:
        raise TargetError(
            f"{name!r}: the domain's file now gives other held-out rows than its data set has. Build it again: "
            f"`lorikeet data build`."
        )
