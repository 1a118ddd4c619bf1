"""`lorikeet export ollama`: the GGUF files and a Modelfile with the version's request defaults."""

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from adapters.store.manifest import RequestDefaults
from train.errors import ExportError
from train.export.chat_families import FoundFamily, find_family
from train.export.gguf import ADAPTER_FILE, BASE_FILE, write_gguf
from train.export.readme import write_readme
from train.export.version import Version

MODEL_FILE = "Modelfile"
_QUOTES = '"""'


def export_ollama(version: Version, folder: Path) -> tuple[str, ...]:
    """Write the files into an empty folder; returns what the user must know.

    Raises:
        ExportError: As `export_gguf`; or a text that a Modelfile cannot hold.
    """
    defaults = version.manifest.defaults or RequestDefaults()
    found = find_family(AutoTokenizer.from_pretrained(version.base_folder))
    text = model_file(str(version.target), defaults, found)  # refuses before the large files are written
    write_gguf(version, folder)
    (folder / MODEL_FILE).write_text(text, encoding="utf-8")
    write_readme(version, folder, _README.format(name=version.manifest.name), library="gguf")
    return tuple(_notes(version, defaults, found))


def model_file(name: str, defaults: RequestDefaults, found: FoundFamily | None) -> str:
    """The Modelfile's text.

    Args:
        found: The family of the base's chat template; None leaves `TEMPLATE` out.

    Raises:
        ExportError: A text contains three quotation marks, which a Modelfile cannot hold.
    """
    lines = [f"# {name}, made by `lorikeet export ollama`.", f"FROM ./{BASE_FILE}", f"ADAPTER ./{ADAPTER_FILE}"]
    if found is not None:
        lines.append(f"TEMPLATE {_QUOTES}{found.family.go_template}{_QUOTES}")
    system = defaults.system or (found.default_system if found is not None else None)
    if system:
        lines.append(f"SYSTEM {_quoted('system', system, always_three=True)}")
    lines += _parameters(defaults)
    if found is not None:
        lines.append(f"PARAMETER stop {_quoted('stop', found.family.end)}")
    return "\n".join(lines) + "\n"


def _parameters(defaults: RequestDefaults) -> Iterator[str]:
    if defaults.temperature is not None:
        yield f"PARAMETER temperature {defaults.temperature:g}"
    if defaults.top_p is not None:
        yield f"PARAMETER top_p {defaults.top_p:g}"
    if defaults.max_tokens is not None:
        yield f"PARAMETER num_predict {defaults.max_tokens}"
    yield "# No penalty, as when the version was evaluated."
    yield "PARAMETER repeat_penalty 1"
    if defaults.stop:
        yield "# Ollama cuts these off the answer; Lorikeet keeps them."
        yield from (f"PARAMETER stop {_quoted('stop', text)}" for text in defaults.stop)


def _quoted(field: str, text: str, *, always_three: bool = False) -> str:
    """A value between quotation marks; a Modelfile has no escapes."""
    if _QUOTES in text:
        raise ExportError(f"The version's default `{field}` contains {_QUOTES}, which a Modelfile cannot hold.")
    is_simple = not always_three and '"' not in text and text == text.strip() and "\n" not in text
    return f'"{text}"' if is_simple else f"{_QUOTES}{text}{_QUOTES}"


def _notes(version: Version, defaults: RequestDefaults, found: FoundFamily | None) -> Iterator[str]:
    if found is None:
        yield (
            f"the chat template of {version.base.name} is of no known family, so {MODEL_FILE} has no TEMPLATE: Ollama "
            "takes the one in base.gguf if it knows it, or add a Go template yourself"
        )
    if defaults.stop:
        yield f"Ollama cuts the stop strings {list(defaults.stop)} off the answers; Lorikeet keeps them"
    if defaults.response_format is not None:
        yield "a Modelfile cannot hold response_format: send its JSON schema as `format` with each request"


_README = (
    "For Ollama, made by `lorikeet export ollama`: `ollama create {name} -f Modelfile` in this folder, then "
    "`ollama run {name}`. `base.gguf` and `adapter.gguf` are for llama.cpp, too."
)
