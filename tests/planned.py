"""Requests that were planned, for tests of what sends them."""

from config.dataset import Message
from loadtest.load.prompts import Prompt
from loadtest.load.workload import PlannedRequest


def planned(index: int = 0, *, intended_s: float = 0.0, model: str = "medical", max_tokens: int = 4) -> PlannedRequest:
    prompt = Prompt((Message(role="user", content="Hello?"),), max_tokens)
    return PlannedRequest(index, intended_s, model, prompt, ignore_eos=False)
