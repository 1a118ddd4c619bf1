"""The search space of a sweep: suggestions of Optuna, and a domain's values with them."""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import BaseTrial
from pydantic import TypeAdapter, ValidationError

from config.domain import DomainConfig
from config.method import MethodConfig
from config.sweep import Range
from train.errors import RecipeError


def suggest(trial: BaseTrial, config: DomainConfig) -> dict[str, Any]:
    """A value for each setting that the suggested method has; by the names of the space."""
    space = space_of(config)
    values: dict[str, Any] = {}
    if "method" in space:
        values["method"] = _suggest(trial, "method", space.pop("method"))
    known = method_settings(values.get("method", config.method.name))
    for name, choices in space.items():
        if not name.startswith("method.") or name.removeprefix("method.") in known:
            values[name] = _suggest(trial, name, choices)
    return values


def space_of(config: DomainConfig) -> dict[str, Range | tuple[Any, ...]]:
    """The domain's space. The default one has rates around the recipe's, and what its method can vary: with `from`,
    nothing."""
    space = dict(config.sweep.space)
    if "space" in config.sweep.model_fields_set:
        return space
    known = frozenset() if config.from_version is not None else method_settings(config.method.name)
    rate = config.recipe.learning_rate
    space["recipe.learning_rate"] = Range(low=rate / 10, high=3 * rate, log=True)
    return {
        name: choices
        for name, choices in space.items()
        if not name.startswith("method.") or name.removeprefix("method.") in known
    }


def with_values(values: Mapping[str, Any], suggested: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a domain's YAML with other settings; what another method does not know is left out."""
    changed = copy.deepcopy(dict(values))
    for name in ("method", "objective", "recipe"):
        if isinstance(changed.get(name), str):
            changed[name] = {"name": changed[name]}
    if "method" in suggested:
        known = method_settings(suggested["method"])
        kept = {key: value for key, value in changed.get("method", {}).items() if key in known}
        changed["method"] = kept | {"name": suggested["method"]}
    for name, value in suggested.items():
        room, _, key = name.partition(".")
        if key:
            changed.setdefault(room, {})[key] = value
    return changed


def method_settings(name: str) -> frozenset[str]:
    """The settings of a method; none of one that does not exist, which the domain's own check tells."""
    try:
        method = TypeAdapter[Any](MethodConfig).validate_python(name)
    except ValidationError:
        return frozenset()
    return frozenset(type(method).model_fields)


def each_value(config: DomainConfig) -> Iterator[dict[str, Any]]:
    """Each listed value and each end of a range once, alone, to be checked before the first trial.

    Raises:
        RecipeError: No method of the space has a setting that is to be varied.
    """
    space = space_of(config)
    methods = space.get("method", (config.method.name,))
    if isinstance(methods, Range):
        raise RecipeError("`sweep.space.method` must be a list of methods, as [lora, dora].")
    for name, choices in space.items():
        key = name.removeprefix("method.")
        owners = [method for method in methods if key == name or key in method_settings(method)]
        if not owners:
            raise RecipeError(f"`sweep.space` has {name!r}, which {', '.join(map(str, methods))} lacks. Leave it out.")
        for choice in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            yield {"method": owners[0], name: choice}


def as_plain(values: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(values, Mapping):
        return {key: as_plain(value) for key, value in values.items()}
    return [as_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _suggest(trial: BaseTrial, name: str, choices: Range | tuple[Any, ...]) -> Any:
    if isinstance(choices, tuple):
        # Optuna stores plain values only.
        by_label = {_label(choice): choice for choice in choices}
        return by_label[trial.suggest_categorical(name, list(by_label))]
    if choices.is_whole:
        return trial.suggest_int(name, int(choices.low), int(choices.high), log=choices.log)
    return trial.suggest_float(name, choices.low, choices.high, log=choices.log)


def _label(choice: Any) -> Any:
    return choice if isinstance(choice, str | int | float | bool) else json.dumps(choice, default=str)
