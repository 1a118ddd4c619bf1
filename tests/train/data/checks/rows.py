"""Hand-made examples of one question and one answer, with the lines of a file as their origin."""

from config.dataset import Message, Origin
from train.data.examples import Example


def example(question: str, answer: str = "ok", *, line: int = 1, in_scope: bool = True) -> Example:
    return Example(
        "prompt_completion",
        prompt=(Message(role="user", content=question),),
        completion=(Message(role="assistant", content=answer),),
        origin=Origin(file="rows.jsonl", line=line),
        in_scope=in_scope,
    )


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [example(question, answer, line=line) for line, (question, answer) in enumerate(pairs, start=1)]
