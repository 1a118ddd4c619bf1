"""Normalise host names and web origins so that they can be compared."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\s\[\]:@/?#]+)(?::(?P<port>[0-9]{0,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>\S+)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

ANY_HOST = "*"


def normal_host(text: str) -> str | None:
    """Normalise a host name or address without port (lower case, no final dot); None if it is neither.

    An IPv6 address may be in brackets.
    """
    host = text.lower().removesuffix(".")
    if host.startswith("[") and host.endswith("]"):
        return _address(host[1:-1], 6)
    return _address(host) or (host if _NAME.fullmatch(host) else None)


def split_authority(text: str) -> tuple[str, str] | None:
    """Normalised host, and port or "", of a `Host` header; None if it is malformed."""
    parts = _AUTHORITY.fullmatch(text)
    host = normal_host(parts["host"]) if parts else None
    return (host, parts["port"] or "") if parts and host else None


def normal_origin(text: str) -> tuple[str, str, str] | None:
    """Scheme, host and port ("" for the scheme's own) of an `Origin` header; None for "null" and malformed values."""
    parts = _ORIGIN.fullmatch(text)
    authority = split_authority(parts["authority"]) if parts else None
    if parts is None or authority is None:
        return None
    scheme, (host, port) = parts["scheme"].lower(), authority
    return scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else port


def is_same_host(origin: tuple[str, str, str], host_header: tuple[str, str]) -> bool:
    """Whether a request is same-origin: its `Origin` matches the `Host` header.

    Only host and port are compared: a proxy that ends TLS hides the scheme.
    """
    scheme, *place = origin
    host, port = host_header
    return scheme in _DEFAULT_PORTS and place == [host, "" if port == _DEFAULT_PORTS[scheme] else port]


def is_loopback(host: str) -> bool:
    """Whether a host, in any notation, is a loopback name or address."""
    normal = normal_host(host) or ""
    try:
        address = ipaddress.ip_address(normal)
    except ValueError:
        return normal == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _address(text: str, version: int | None = None) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(address) if version in (None, address.version) else None


def _allowed_host(text: str) -> str:
    host = ANY_HOST if text == ANY_HOST else normal_host(text)
    if host is None:
        raise ValueError(f"{text!r} must be a host name or an address without scheme and port, or '*' for every host")
    return host


def _allowed_origin(text: str) -> str:
    if normal_origin(text) is None:
        raise ValueError(
            f"{text!r} must be an origin as browsers send it, like 'https://app.example' or 'http://localhost:3000': "
            "with scheme, without path; '*' is not allowed"
        )
    return text


AllowedHost = Annotated[str, AfterValidator(_allowed_host)]
AllowedOrigin = Annotated[str, AfterValidator(_allowed_origin)]
