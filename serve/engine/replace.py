"""How ours takes the place of vLLM's methods: only where vLLM's source is what the table of patches was written for."""

import hashlib
import inspect
import logging
import multiprocessing
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.engine.patches import VERSION, change_at
from serve.errors import EngineStartError

logger = logging.getLogger(__name__)

_MARK = "_lorikeet_replacement"

_skipped: set[str] = set()


class PatchError(EngineStartError):
    """A change to vLLM on which correct answers depend cannot be made: ends the start."""


@dataclass(frozen=True)
class Replacement:
    """Ours for one method, function or attribute of vLLM.

    Attributes:
        owner: Class or module.
        ours: Called with what stood there first, then with its arguments; `is_value`: put there as it is.
    """

    owner: Any
    name: str
    ours: Any
    is_value: bool = False

    @property
    def place(self) -> str:
        """As the table of patches has it."""
        return place_of(self.owner, self.name)

    @property
    def is_new(self) -> bool:
        """Whether nothing of ours stands there yet."""
        current = vars(self.owner).get(self.name)
        return current is not self.ours and _mark(current) is None


def install(*replacements: Replacement) -> bool:
    """Put all of them in place, or none; whether they are. Done twice, it does no more.

    Raises:
        PatchError: vLLM's source has changed where a change is required, or another replacement stands there.
    """
    # Tests bring classes of their own in the place of vLLM's.
    checked = [one for one in replacements if one.place.startswith(("vllm.", "torch.")) and one.is_new]
    changed = [one.place for one in checked if not is_unchanged(one.owner, one.name)]
    if changed:
        _skip(changed)
        return False
    for one in replacements:
        _place(one)
    return True


def require_unchanged(owner: Any, *names: str) -> None:
    """Of methods that a subclass of ours overrides.

    Raises:
        PatchError: vLLM's source has changed.
    """
    changed = [place_of(owner, name) for name in names if not is_unchanged(owner, name)]
    if changed:
        _skip(changed)


def skipped() -> frozenset[str]:
    """The patches that this process has left out, as vLLM's source has changed."""
    return frozenset(_skipped)


def is_unchanged(owner: Any, name: str) -> bool:
    """Whether what is to be replaced is what ours was written for: its source, and with it the signature."""
    place = place_of(owner, name)
    return source_sha256(owner, name) == change_at(place).sources[place]


def source_sha256(owner: Any, name: str) -> str:
    """Of what stands there, its first 16 digits, whatever its indentation; empty where there is no source."""
    try:
        found = inspect.getattr_static(owner, name)
        found = found.fget if isinstance(found, property) else found
        found = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        source = inspect.getsource(found) if callable(found) else repr(found)
    except (AttributeError, OSError, TypeError):  # nothing, or not written in Python
        return ""
    lines = [line.rstrip() for line in textwrap.dedent(source).splitlines()]
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()[:16]


def replace_method(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """`owner.name` becomes `ours`, which gets what stood there first; done twice, it does no more.

    Raises:
        PatchError: Another replacement stands there already.
    """
    static = inspect.getattr_static(owner, name)
    stock = static.__func__ if isinstance(static, classmethod) else getattr(owner, name)
    made = _mark(vars(owner).get(name))
    if made == qualified(ours):
        return
    if made is not None:
        raise PatchError(f"Two patches of {owner.__name__}.{name}: {made} and {qualified(ours)}. Make them one.")

    def method(first: Any, /, *args: Any, **kwargs: Any) -> Any:
        return ours(stock, first, *args, **kwargs)

    setattr(method, _MARK, qualified(ours))
    setattr(owner, name, classmethod(method) if isinstance(static, classmethod) else method)


def place_of(owner: Any, name: str) -> str:
    """As the table of patches has it: `module:Class.method`, or `module:name`."""
    return f"{owner.__name__}:{name}" if inspect.ismodule(owner) else f"{qualified(owner)}.{name}"


def qualified(named: Any) -> str:
    """Module and name of a class or function."""
    return f"{named.__module__}:{named.__qualname__}"


def _place(one: Replacement) -> None:
    if one.is_value:
        setattr(one.owner, one.name, one.ours)
    else:
        replace_method(one.owner, one.name, one.ours)


def _mark(found: Any) -> str | None:
    found = found.__func__ if isinstance(found, classmethod) else found
    made: str | None = getattr(found, _MARK, None)
    return made


def _skip(places: list[str]) -> None:
    """Leave vLLM's own in use, or end the start."""
    changes = [change_at(place) for place in places]
    for place, change in zip(places, changes, strict=True):
        if change.is_required:
            raise PatchError(
                f"The source of {place} differs from that of vLLM {VERSION}, for which our change was written. Without "
                f"the change: {change.why} Install vLLM {VERSION}; docs/engine.md says how to upgrade."
            )
    new = set(places) - _skipped
    _skipped.update(new)
    if new and multiprocessing.parent_process() is None:  # once, not again in each process of the engine
        logger.warning(
            "The source of %s differs from that of vLLM %s, for which our change was written; vLLM's own stays in use. "
            "%s docs/engine.md says how to upgrade.",
            ", ".join(sorted(new)),
            VERSION,
            " ".join(dict.fromkeys(change.why for change in changes)),
        )
