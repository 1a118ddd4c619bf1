"""Chat templates as Go templates for Ollama; a base's template is recognised by what it renders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from train.data.template import render

Turn = dict[str, str]

_AT = datetime(2026, 1, 1, 12)  # a template that writes the date is recognised as none
_SYSTEM, _USER, _ASSISTANT, _NEXT = "Be brief.", "What is it?", "It is that.", "And this?"


@dataclass(frozen=True)
class ChatFamily:
    """One way to write conversations.

    Attributes:
        go_template: The same as `write`, for Ollama's `TEMPLATE`.
        end: What the model writes at the end of a turn.
        write: The text of a conversation, up to the header of the assistant's turn, without BOS.
    """

    name: str
    go_template: str
    end: str
    write: Callable[[Sequence[Turn]], str]


@dataclass(frozen=True)
class FoundFamily:
    """A base's family, and the system prompt that its template adds to a conversation without one."""

    family: ChatFamily
    default_system: str | None


def find_family(tokenizer: PreTrainedTokenizerBase) -> FoundFamily | None:
    """The family whose texts the base's chat template renders, if it is a known one.

    A BOS token before the text does not count: engines add it themselves.
    """
    user, system = {"role": "user", "content": _USER}, {"role": "system", "content": _SYSTEM}
    turns = [system, user, {"role": "assistant", "content": _ASSISTANT}, {"role": "user", "content": _NEXT}]
    texts = [_rendered(tokenizer, each) for each in (turns[:2], turns, [user])]
    for bos in ("", tokenizer.bos_token or ""):
        short, long, plain = (text.removeprefix(str(bos)) for text in texts)
        for family in FAMILIES:
            if (short, long) == (family.write(turns[:2]), family.write(turns)):
                if plain == family.write([user]):
                    return FoundFamily(family, None)
                if (added := _added_system(plain, family, user)) is not None:
                    return FoundFamily(family, added)
    return None


def _added_system(text: str, family: ChatFamily, user: Turn) -> str | None:
    """The system prompt in a text that was rendered without one."""
    before, _, after = family.write([{"role": "system", "content": _SYSTEM}, user]).partition(_SYSTEM)
    if text.startswith(before) and text.endswith(after):
        return text[len(before) : len(text) - len(after)]
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """The text of a conversation; empty if the template refuses it."""
    try:
        return render(tokenizer, turns, _AT, is_prompt=True)
    except TemplateError:
        return ""


def _chatml(turns: Sequence[Turn]) -> str:
    written = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns]
    return "".join(written) + "<|im_start|>assistant\n"


def _llama3(turns: Sequence[Turn]) -> str:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return "".join(f"{header(turn['role'])}{turn['content']}<|eot_id|>" for turn in turns) + header("assistant")


def _system_first(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with the system prompt at the beginning of the first user turn."""
    if turns[0]["role"] != "system":
        return list(turns)
    content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    return [{"role": "user", "content": content}, *turns[2:]]


def _gemma(turns: Sequence[Turn]) -> str:
    names = {"user": "user", "assistant": "model"}
    written = [
        f"<start_of_turn>{names[turn['role']]}\n{turn['content']}<end_of_turn>\n" for turn in _system_first(turns)
    ]
    return "".join(written) + "<start_of_turn>model\n"


def _mistral(space: str) -> Callable[[Sequence[Turn]], str]:
    def write(turns: Sequence[Turn]) -> str:
        return "".join(
            f"[INST]{space}{turn['content']}{space}[/INST]"
            if turn["role"] == "user"
            else f"{space}{turn['content']}</s>"
            for turn in _system_first(turns)
        )

    return write


# The system prompt, where it belongs into the first user turn: message 0 or, after a system message, message 1.
_GO_SYSTEM_FIRST = "{{ if and $.System (le $index 1) }}{{ $.System }}\n\n{{ end }}{{ .Content }}"


def _go_mistral(space: str) -> str:
    return (
        '{{- range $index, $message := .Messages }}{{ if eq .Role "user" }}'
        f"[INST]{space}{_GO_SYSTEM_FIRST}{space}[/INST]"
        f'{{{{ else if eq .Role "assistant" }}}}{space}{{{{ .Content }}}}</s>{{{{ end }}}}{{{{ end }}}}'
    )


FAMILIES = (
    ChatFamily(
        "ChatML",
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        "<|im_end|>",
        _chatml,
    ),
    ChatFamily(
        "Llama 3",
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        _llama3,
    ),
    ChatFamily(
        "Gemma",
        '{{- range $index, $message := .Messages }}{{ if eq .Role "user" }}<start_of_turn>user\n'
        f"{_GO_SYSTEM_FIRST}<end_of_turn>\n"
        '{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}{{ end }}'
        "<start_of_turn>model\n",
        "<end_of_turn>",
        _gemma,
    ),
    ChatFamily("Mistral", _go_mistral(" "), "</s>", _mistral(" ")),
    ChatFamily("Mistral without spaces", _go_mistral(""), "</s>", _mistral("")),
)
