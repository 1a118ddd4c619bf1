"""Texts that a chat template has rendered already; the model would learn a template in a template."""

import re
from collections.abc import Iterator, Sequence

from train.data.checks.texts import texts_of
from train.data.examples import Example
from train.data.steps import RENDERED_TEMPLATES, Finding, StepResult, finding, reported

# The family's name, and what its template writes around a turn.
_MARKS = {
    "ChatML": r"<\|im_(?:start|end|sep)\|>",
    "Llama 2 or Mistral": r"\[/?INST\]|<</?SYS>>",
    "Llama 3": r"<\|(?:start_header_id|end_header_id|eot_id|begin_of_text)\|>",
    "Llama 4": r"<\|(?:header_start|header_end|eot)\|>",
    "Gemma": r"<(?:start|end)_of_turn>",
    "DeepSeek": r"<[|｜](?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)[|｜]>",
    "Phi or Zephyr": r"<\|(?:user|assistant|system|end|endoftext)\|>",
    "gpt-oss": r"<\|(?:channel|message|start|return|call)\|>",
    "Granite": r"<\|(?:start_of_role|end_of_role|end_of_text)\|>",
    "Command R": r"<\|(?:START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|USER_TOKEN|CHATBOT_TOKEN)\|>",
    "Alpaca": r"(?m:^#{2,3} ?(?:Instruction|Input|Response):)",
    "Vicuna": r"(?ms:^(?:USER|Human|### Human): .*?^(?:ASSISTANT|Assistant|### Assistant):)",
}
_PATTERNS = {family: re.compile(pattern) for family, pattern in _MARKS.items()}
_MAY_HAVE = ("<|", "<｜", "INST]", "SYS>>", "_of_turn>", "##", "SSISTANT:", "ssistant:")


def check_rendered(examples: Sequence[Example]) -> StepResult:
    """Report rows with marks of a rendered chat template."""
    return reported(RENDERED_TEMPLATES, examples, _findings(examples))


def template_families(text: str) -> list[str]:
    """The families of templates whose marks a text has."""
    if not any(mark in text for mark in _MAY_HAVE):
        return []
    return [family for family, pattern in _PATTERNS.items() if pattern.search(text)]


def _findings(examples: Sequence[Example]) -> Iterator[Finding]:
    for example in examples:
        marked = {family: text for text in texts_of(example) for family in template_families(text)}
        if marked:
            reason = f"has marks of a rendered chat template ({', '.join(marked)})"
            yield finding(example, reason, text=next(iter(marked.values())))
