"""A replica that joins others loads what its share of the requests will ask for, before it takes any."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from adapters.placement import share_of_new
from adapters.reference import Target, parse_reference

logger = logging.getLogger(__name__)

_MAX_WARMING_S = 60.0

Demand = Mapping[str, int]
"""Requests of late by version, as `medical@3`."""
AskOthers = Callable[[], Awaitable[Sequence[Demand]]]
Load = Callable[[Target], Awaitable[None]]


async def warm(ask_others: AskOthers, load: Load, num_places: int, max_s: float = _MAX_WARMING_S) -> tuple[str, ...]:
    """Load the share of a new replica; a version that cannot be loaded is left to its first request.

    Args:
        ask_others: Returns the demand of each replica that runs; empty if there is none.
        num_places: At most so many versions.
        max_s: What is not loaded after this is left to the first requests, too.

    Returns:
        What was loaded.
    """
    loaded: list[str] = []
    try:
        async with asyncio.timeout(max_s):
            demands = await ask_others()
            total = sum(map(Counter, demands), Counter[str]())
            for name in share_of_new(total, len(demands) + 1, num_places):
                if await _is_loaded(name, load):
                    loaded.append(name)
    except Exception as error:  # boundary: a replica that starts without it only starts colder
        logger.warning("Adapters that are in use elsewhere are not loaded in advance: %r", error)
    if loaded:
        logger.info("Loaded in advance: %s", ", ".join(loaded))
    return tuple(loaded)


async def _is_loaded(name: str, load: Load) -> bool:
    reference = parse_reference(name)
    assert reference.version is not None  # as `str` of a target has it
    try:
        await load(Target(reference.name, reference.version))
    except Exception as error:  # boundary: the first request for it gets the reason
        logger.warning("Not loaded in advance: %s: %s", name, error)
        return False
    return True
