"""Bind the server's address before any slow startup step, so a port in use is reported immediately."""

import errno
import os
import socket
import sys
from contextlib import ExitStack

from serve.errors import AddressError

_BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address that a host name means. They answer once a server takes them.

    Raises:
        AddressError: It cannot be listened on; the message says why, and what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{host!r} is not an address of this machine ({error}). Correct `host`.") from error
    failure: OSError | None = None
    with ExitStack() as opened:
        sockets = []
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                sockets.append(opened.enter_context(_listening(family, address)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise AddressError(_reason(host, port, error)) from error
                failure = error  # as where IPv6 is switched off; another address of the name may do
        if not sockets and failure is not None:
            raise AddressError(_reason(host, port, failure)) from failure
        opened.pop_all()
    return sockets


def _listening(family: int, address: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server still fade
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)  # type: ignore[arg-type] # as `getaddrinfo` gave it
        made.listen(_BACKLOG)  # bound only, Linux would let a second server have it, too
    except BaseException:
        made.close()
        raise
    return made


def _reason(host: str, port: int, error: OSError) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program. Stop it, or choose another port: `--port NUMBER`."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} needs privileges that this user lacks. Choose a port of 1024 or above: `--port NUMBER`."
    return f"Cannot listen on {where}: {error.strerror}. Correct `host` and `port`."
