from importlib.util import find_spec
from pathlib import Path

import pytest

from adapters.store.manifest import RequestDefaults
from tests.exported import publish
from tests.narrowing import not_none
from tests.tiny_llama import CHAT_TEMPLATE, prepare_tiny_base, tiny_tokenizer
from train.errors import ExportError
from train.export.chat_families import find_family
from train.export.ollama import model_file

TRL_TEMPLATES = Path(not_none(not_none(find_spec("trl")).origin)).parent / "chat_templates"
CHATML = not_none(find_family(tiny_tokenizer()))


def test_the_modelfile_has_the_defaults_of_the_version(lorikeet, tmp_path):
    result = lorikeet("export", "ollama", "colours@1", "--output", tmp_path / "out")
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"Modelfile", "base.gguf", "adapter.gguf", "README.md"}
    assert (tmp_path / "out" / "Modelfile").read_text() == (
        "# colours@1, made by `lorikeet export ollama`.\n"
        "FROM ./base.gguf\n"
        "ADAPTER ./adapter.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
        '{{ end }}<|im_start|>assistant\n"""\n'
        'SYSTEM """Colour?"""\n'
        "PARAMETER temperature 0\n"
        "PARAMETER num_predict 8\n"
        "# No penalty, as when the version was evaluated.\n"
        "PARAMETER repeat_penalty 1\n"
        "# Ollama cuts these off the answer; Lorikeet keeps them.\n"
        'PARAMETER stop """\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
    assert "note Ollama cuts the stop strings" in result.stdout


def test_the_system_prompt_that_a_template_adds_is_written():
    template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nI am Smol.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
    )
    found = not_none(find_family(tiny_tokenizer(template)))
    assert found.default_system == "I am Smol."
    assert 'SYSTEM """I am Smol."""' in model_file("a@1", RequestDefaults(), found)
    assert 'SYSTEM """Mine"""' in model_file("a@1", RequestDefaults(system="Mine"), found)


@pytest.mark.parametrize(
    ("file", "family"),
    [("qwen2_5", "ChatML"), ("llama3", "Llama 3"), ("qwen3", "ChatML"), ("gemma3", "Gemma"), ("phi3", None)],
)
def test_a_template_is_recognised_by_what_it_renders(file, family):
    tokenizer = tiny_tokenizer((TRL_TEMPLATES / f"{file}.jinja").read_text())
    tokenizer.bos_token = "<|endoftext|>"
    found = find_family(tokenizer)
    assert (found.family.name if found else None) == family


@pytest.mark.parametrize("bos", ["<|im_start|>", "<|endoftext|>", None])
def test_the_bos_token_does_not_matter(bos):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = bos
    assert not_none(find_family(tokenizer)).family.name == "ChatML"


def test_a_template_of_mistral_is_recognised():
    template = (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
        "[INST] {{ system if loop.first else '' }}{{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    assert not_none(find_family(tiny_tokenizer(template))).family.name == "Mistral"


def test_an_unknown_template_is_left_out_with_a_note(home, lorikeet, tmp_path, model_folder):
    (model_folder / "chat_template.jinja").write_text(
        "{% for m in messages %}#{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    prepare_tiny_base(home, model_folder, "odd")
    publish(home, tmp_path / "colours", "odd", base="odd", defaults=None)
    result = lorikeet("export", "ollama", "odd@1", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "note the chat template of odd is of no known family" in result.stdout
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text()


def test_a_text_that_a_modelfile_cannot_hold_is_refused(home, lorikeet, tmp_path):
    publish(home, tmp_path / "colours", "quoted", defaults=RequestDefaults(system='Say """ often'))
    result = lorikeet("export", "ollama", "quoted@1", "--output", tmp_path / "out")
    assert 'The version\'s default `system` contains """' in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_quotation_mark_is_kept():
    text = model_file("a@1", RequestDefaults(system='Say "no"', stop=('"', " x")), CHATML)
    assert 'SYSTEM """Say "no""""' in text
    assert 'PARAMETER stop """""""' in text
    assert 'PARAMETER stop """ x"""' in text


def test_three_quotation_marks_are_an_error():
    with pytest.raises(ExportError, match="stop"):
        model_file("a@1", RequestDefaults(stop=('"""',)), CHATML)
