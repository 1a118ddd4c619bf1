"""How the plugin changes vLLM without a change to its source: one method in the place of another."""

from collections.abc import Callable
from typing import Any

_MARK = "_lorikeet_replacements"


def replace_method(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """`owner.name` becomes `ours`, which gets what stood there first; done twice, it does no more.

    vLLM loads a plugin more than once in a process. Another replacement of the same method wraps the first one.
    """
    stock = getattr(owner, name)
    made: tuple[str, ...] = getattr(stock, _MARK, ())
    key = f"{ours.__module__}.{ours.__qualname__}"
    if key in made:
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(stock, self, *args, **kwargs)

    setattr(method, _MARK, (*made, key))
    setattr(owner, name, method)
