"""Request defaults for an adapter from elsewhere, read from a file that a person wrote."""

from pathlib import Path

import yaml
from jsonschema import SchemaError
from jsonschema.validators import validator_for
from pydantic import ValidationError

from adapters.errors import InvalidDefaultsError
from adapters.store.manifest import RequestDefaults

_MAX_VALUE_CHARS = 80


def read_defaults(path: Path) -> RequestDefaults:
    """The defaults in a YAML or JSON file.

    Raises:
        InvalidDefaultsError: Not readable, no mapping, or a key is unknown or wrong; names all such keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDefaultsError(
            f"{path}: cannot be read ({error}). Give the path of a YAML or JSON file."
        ) from error
    except yaml.YAMLError as error:
        raise InvalidDefaultsError(f"{path}: neither YAML nor JSON: {' '.join(str(error).split())}") from error
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
        raise InvalidDefaultsError(f"{path}: `response_format` holds no JSON schema: {error.message}") from error
    return defaults


def _check_schema(defaults: RequestDefaults) -> None:
    if defaults.response_format is not None:
        schema = defaults.response_format["json_schema"]["schema"]
        validator_for(schema).check_schema(schema)
