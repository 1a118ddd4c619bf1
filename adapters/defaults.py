"""Request defaults of an imported adapter, read from a YAML or JSON file."""

from pathlib import Path

import yaml
from jsonschema import SchemaError
from jsonschema.validators import validator_for
from pydantic import ValidationError

from adapters.errors import InvalidDefaultsError
from adapters.store.manifest import RequestDefaults

_MAX_VALUE_CHARS = 80


def read_defaults(path: Path) -> RequestDefaults:
    """Read request defaults from a YAML or JSON file.

    Raises:
        InvalidDefaultsError: Unreadable, not a mapping, or unknown or invalid keys; the message lists all of them.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDefaultsError(
            f"{path}: cannot be read ({error}). Give the path of a YAML or JSON file."
        ) from error
    except yaml.YAMLError as error:
        raise InvalidDefaultsError(f"{path}: not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        known = ", ".join(RequestDefaults.model_fields)
        raise InvalidDefaultsError(f"{path}: got {type(values).__name__}, wanted a mapping with some of {known}.")
    try:
        defaults = RequestDefaults.model_validate(values)
        _check_schema(defaults)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, problem['loc']))}`: got {repr(problem['input'])[:_MAX_VALUE_CHARS]}; "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise InvalidDefaultsError(f"{path}: {problems}. Correct the file and import again.") from error
    except SchemaError as error:
        raise InvalidDefaultsError(
            f"{path}: `response_format` must hold a valid JSON schema: {error.message}"
        ) from error
    return defaults


def _check_schema(defaults: RequestDefaults) -> None:
    if defaults.response_format is not None:
        schema = defaults.response_format["json_schema"]["schema"]
        validator_for(schema).check_schema(schema)
