"""Command-line options that override a load test's configuration. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import validate
from config.loadtest import LoadtestConfig

_MIXES = "zipf[:S], uniform, weights:W,W,…, hot-set:SIZE[,SHARE[,ROTATE_AFTER]], one-shot"


@dataclass(frozen=True)
class RunOptions:
    """Command-line options; None keeps the configuration's value."""

    url: str | None = None
    duration_s: float | None = None
    num_requests: int | None = None
    seed: int | None = None
    arrival: str | None = None
    rate: float | None = None
    rate_to: float | None = None
    burstiness: float | None = None
    concurrency: int | None = None
    trace: Path | None = None
    models: tuple[str, ...] = ()
    mix: str | None = None
    base: str | None = None
    base_share: float | None = None
    dataset: str | None = None
    prompt_words: int | None = None
    max_tokens: int | None = None


def with_options(values: Mapping[str, Any], options: RunOptions, origin: str) -> LoadtestConfig:
    """The configuration with the given options applied.

    Raises:
        ConfigError: The combination is invalid.
    """
    top = {name: getattr(options, name) for name in ("url", "duration_s", "num_requests", "seed")}
    merged = dict(values) | _given(top)
    parts = {
        "arrival": _arrival(values.get("arrival") or {}, options),
        "mix": _mix(values.get("mix") or {}, options),
        "prompts": _prompts(values.get("prompts") or {}, options),
    }
    if options.max_tokens is not None:
        parts["max_tokens"] = {"value": options.max_tokens, "kind": "fixed"}
    merged |= {name: part for name, part in parts.items() if part}
    if "mix" not in merged:
        raise ConfigError(f"{origin}: no model given. Name one or more with --model, or give a configuration file.")
    return validate(merged, LoadtestConfig, origin)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _arrival(values: Mapping[str, Any], options: RunOptions) -> dict[str, Any]:
    """The given or implied kind of arrival; keys of other kinds are dropped."""
    implied = {
        "closed": options.concurrency,
        "trace": options.trace,
        "ramp": options.rate_to,
        "gamma": options.burstiness,
    }
    given = _given(
        {
            "rate": options.rate,
            "rate_to": options.rate_to,
            "burstiness": options.burstiness,
            "concurrency": options.concurrency,
            "path": options.trace,
        }
    )
    if not given and options.arrival is None:
        return dict(values)
    before = values.get("kind", "poisson")
    kind = options.arrival or next((kind for kind, value in implied.items() if value is not None), before)
    if kind == "ramp" and "rate" in given:
        given["rate_from"] = given.pop("rate")
    kept = dict(values) if kind == before else {name: values[name] for name in ("rate",) if name in values}
    if kind not in ("poisson", "gamma", "constant"):
        kept.pop("rate", None)
    return kept | given | {"kind": kind}


def _mix(values: Mapping[str, Any], options: RunOptions) -> dict[str, Any]:
    merged = dict(values) | _given({"base": options.base, "base_share": options.base_share})
    if options.models:
        merged["models"] = options.models
        # Weights of other models would be nonsense for these.
        merged |= {} if options.mix else {"popularity": {"kind": "uniform"}}
    if options.mix:
        merged["popularity"] = parse_mix(options.mix)
    return merged


def parse_mix(text: str) -> dict[str, Any]:
    """Parse a mix such as `zipf:1.1` into `mix.popularity`.

    Raises:
        ConfigError: Unknown mix or invalid numbers.
    """
    kind, _, rest = text.partition(":")
    try:
        numbers = [float(number) for number in rest.split(",") if number]
    except ValueError:
        raise ConfigError(f"--mix {text!r}: {rest!r} must be numbers. Known: {_MIXES}.") from None
    keys = {"zipf": ("s",), "uniform": (), "hot-set": ("size", "share", "rotate_after"), "one-shot": ()}
    if kind == "weights":
        return {"kind": "weights", "weights": tuple(numbers)}
    if kind not in keys or len(numbers) > len(keys[kind]):
        raise ConfigError(f"--mix {text!r} is unknown. Known: {_MIXES}.")
    return {"kind": kind.replace("-", "_")} | dict(zip(keys[kind], numbers, strict=False))


def _prompts(values: Mapping[str, Any], options: RunOptions) -> dict[str, Any]:
    if options.dataset is not None:
        return {"kind": "dataset"} | ({} if options.dataset == "own" else {"domain": options.dataset})
    if options.prompt_words is not None:
        shared = values.get("shared_prefix_share", 0.0)
        num_words = {"kind": "fixed", "value": options.prompt_words}
        return {"kind": "synthetic", "num_words": num_words, "shared_prefix_share": shared}
    return dict(values)
