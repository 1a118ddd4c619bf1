"""Prefix cache isolation: each tenant has a secret cache salt.

vLLM finds a cached block by its tokens, its adapter and its salt. Without a salt, `cached_tokens` and the time to the
first token would tell a tenant that another one has sent this very prompt. What the server asks for itself (golden
prompts, held-out questions, a judge) has none, and each client's request has one: so clients do not find it, either.
"""

import hashlib
import hmac
import secrets
from typing import Any

from serve.errors import InvalidRequestError

_MAX_CHARS = 128  # vLLM's own bound


class CacheSalts:
    """Salts of one process, made with a key that nobody knows: the cache itself lives no longer.

    Args:
        is_shared: All tenants have the same salt.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self._key = secrets.token_bytes(32)

    def salted(self, body: dict[str, Any], tenant: str) -> dict[str, str]:
        """The field `cache_salt` of a tenant's request: of the tenant, and of the salt that its client gives, if any.

        Raises:
            InvalidRequestError: The client's salt is none.
        """
        given = body.get("cache_salt")
        if given is not None and not (isinstance(given, str) and 0 < len(given) <= _MAX_CHARS):
            raise InvalidRequestError(f"`cache_salt` must be a string of 1 to {_MAX_CHARS} characters.", "cache_salt")
        # Unambiguous: no tenant's name has a zero character, and a salt that is given is not empty.
        words = f"{'' if self._is_shared else tenant}\0{given or ''}"
        return {"cache_salt": hmac.new(self._key, words.encode(), hashlib.sha256).hexdigest()}
