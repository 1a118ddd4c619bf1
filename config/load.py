"""Load YAML files into configuration models; errors name the file, the key, the value and the expected value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from config.domain import AdapterName, DomainConfig
from config.errors import ConfigError
from config.loadtest import LoadtestConfig, TraceArrival
from config.model import Config
from config.packaged import packaged_twin
from config.serve import ServeConfig
from quality.metrics.settings import MetricConfig, PythonMetric

ConfigT = TypeVar("ConfigT", bound=Config)

_MAX_VALUE_CHARS = 80

_NEW_NAMES = {
    "canary_probes": "golden_replay",
    "canary_probe_interval_s": "golden_replay_interval_s",
    "probe_interval_s": "held_out_interval_s",
    "probe_patience_s": "held_out_patience_s",
    "probes_at_once": "held_out_at_once",
    "probe_again_hours": "held_out_again_hours",
    "publish_probes": "publish_held_out",
}
"""New names of renamed settings, by the old ones, which are refused."""

_NEW_PLACES = {
    "recipe.lora_r": "method.r",
    "recipe.lora_alpha": "method.lora_alpha",
    "recipe.lora_dropout": "method.lora_dropout",
    "recipe.target_modules": "method.target_modules",
    "recipe.use_rslora": "method.use_rslora",
    "recipe.init_lora_weights": "method.init_lora_weights",
}
"""New places of moved settings, by the old ones, which are refused."""

_NAMED_BY = ("objective", "method")
"""Settings of which pydantic puts the name into the path of an error: `method.lora.r`."""


def load_domain(path: Path) -> DomainConfig:
    """Read `config/domains/<domain>.yaml`; relative paths in `data` are resolved against the file's folder.

    Raises:
        ConfigError: The file is missing or not a YAML mapping, or a key is unknown, missing or invalid.
    """
    return domain_of(read_mapping(path), path)


def domain_of(values: Mapping[str, Any], path: Path) -> DomainConfig:
    """The domain with these values of the file `path`.

    Raises:
        ConfigError: A key is unknown, missing or invalid.
    """
    config = validate(values, DomainConfig, str(path))
    resolved = {
        "path": tuple(_resolved(path.parent, name) for name in config.data.paths) or None,
        "held_out": tuple(_resolved(path.parent, name) for name in config.data.held_out),
        "benchmarks": tuple(_resolved(path.parent, name) for name in config.data.benchmarks),
        "replay": tuple(_resolved(path.parent, name) for name in config.data.replay),
    }
    metrics = tuple(_resolved_metric(path.parent, metric) for metric in config.evaluation.metrics)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=resolved),
            "documents": tuple(_resolved(path.parent, name) for name in config.documents),
            "evaluation": config.evaluation.model_copy(update={"metrics": metrics}),
        }
    )


def check_name(name: str) -> str:
    """A name that a domain, and its adapter, can have.

    Raises:
        ConfigError: It is not one.
    """
    try:
        return str(TypeAdapter(AdapterName).validate_python(name))
    except ValidationError:
        raise ConfigError(
            f"{name!r} cannot name a domain: use at most 63 lower-case letters, digits and hyphens, as `support-mail`."
        ) from None


def _resolved(folder: Path, name: str) -> str:
    """A path or glob, relative to the folder; an URL as it is."""
    return name if "://" in name else str(folder / name)


def _resolved_metric(folder: Path, metric: MetricConfig) -> MetricConfig:
    """A function of a Python file, relative to the folder."""
    if not isinstance(metric, PythonMetric):
        return metric
    return metric.model_copy(update={"function": str(folder.resolve() / metric.function)})


def load_serve(path: Path) -> ServeConfig:
    """Read `config/serve.yaml`.

    Raises:
        ConfigError: As `load_domain`.
    """
    return load_config(path, ServeConfig)


def trace_from(folder: Path, config: LoadtestConfig) -> LoadtestConfig:
    """Resolve the relative path of a trace against a folder."""
    if not isinstance(config.arrival, TraceArrival):
        return config
    arrival = config.arrival.model_copy(update={"path": folder / config.arrival.path})
    return config.model_copy(update={"arrival": arrival})


def load_config(path: Path, model: type[ConfigT]) -> ConfigT:
    """Read one YAML file into one model.

    Raises:
        ConfigError: As `load_domain`.
    """
    return validate(read_mapping(path), model, str(path))


def validate(values: Mapping[str, Any], model: type[ConfigT], origin: str) -> ConfigT:
    """Validate values as a model; `origin` names their source in errors.

    Raises:
        ConfigError: A key is unknown, missing or invalid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{origin}: {problems}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not yet validated.

    Raises:
        ConfigError: The file is missing, or not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        twin = packaged_twin(path)
        hint = f"; the packaged one is {twin}" if twin else ""
        raise ConfigError(f"{path}: {error.strerror or error}. Give the path of a YAML file{hint}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x}"
        raise ConfigError(f"{path} line {line}: found {found}, wanted UTF-8. Save the file as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, wanted `key: value` lines.")
    _refuse_half_characters(path, values)
    return values


def _refuse_half_characters(path: Path, values: dict[str, Any]) -> None:
    """Refuse `"\\ud83c"`: half of a surrogate pair, which no file or request can hold."""
    nodes: list[tuple[str, Any]] = [("", values)]
    seen: set[int] = set()  # an alias may make a value hold itself
    while nodes:
        where, node = nodes.pop()
        if isinstance(node, dict | list) and id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            nodes += [(where, key) for key in node]
            nodes += [(f"{where}.{key}" if where else str(key), value) for key, value in node.items()]
        elif isinstance(node, list):
            nodes += [(where, value) for value in node]
        elif isinstance(node, str) and any("\ud800" <= char <= "\udfff" for char in node):
            raise ConfigError(
                f"{path}: `{ascii(where)[1:-1]}`: got {_shown(node)}, which has half of a surrogate pair. "
                "Write the character itself."
            )


def _explain(problem: ErrorDetails) -> str:
    """One sentence: key, value, expected value."""
    path = [part for n, part in enumerate(problem["loc"]) if n != 1 or problem["loc"][0] not in _NAMED_BY]
    key = ".".join(map(str, path)) or "(whole file)"
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "extra_forbidden":
        if (new_name := _NEW_NAMES.get(str(problem["loc"][-1]))) is not None:
            return f"`{key}` is now `{'.'.join((*map(str, problem['loc'][:-1]), new_name))}`; rename it"
        if (new_place := _NEW_PLACES.get(key)) is not None:
            return f"`{key}` is now `{new_place}`; move it"
        return f"`{key}` is not a known key (value {_shown(problem['input'])}); remove it or correct its spelling"
    wanted = problem["msg"].removeprefix("Value error, ")
    return f"`{key}`: got {_shown(problem['input'])}; {wanted[:1].lower()}{wanted[1:]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"
