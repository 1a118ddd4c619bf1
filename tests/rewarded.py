"""A domain with a reward, for tests: an answer is a JSON object of one digit."""

from config.dataset import Message
from config.domain import DomainConfig

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
PROMPT = (Message(role="user", content="Which?"),)


def domain(objective: object = "grpo", **fields: object) -> DomainConfig:
    base = {
        "name": "digits",
        "description": "Digits.",
        "data": {"source": "files", "path": "rows.jsonl"},
        "chat": {"system": "Digit?"},
        "answer": {"json_schema": SCHEMA, "refusal": '{"a": 2}'},
        "evaluation": {"stop": ["}"], "max_new_tokens": 16},
        "objective": objective,
    }
    return DomainConfig.model_validate(base | fields)
