"""How the plugin changes vLLM without a change to its source: one method in the place of another."""

from collections.abc import Callable
from typing import Any

_MARK = "_lorikeet_stock"


def replace_method(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """`owner.name` becomes `ours`, which gets vLLM's own method first; done twice, it does no more.

    vLLM loads a plugin more than once in a process.
    """
    stock = getattr(owner, name)
    if hasattr(stock, _MARK):
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(stock, self, *args, **kwargs)

    setattr(method, _MARK, stock)
    setattr(owner, name, method)
