"""Keeps web pages from operating the server: host names, origins and media types, checked before anything else.

A server on loopback without keys trusts whoever reaches it, and any page in a browser on that machine does. Three
checks keep pages out, in this order; none of them concerns clients that are not browsers.

1. `Host` must be a name of this server; else an attacker's name that now points here (DNS rebinding) would count as the
   same origin. `/health` and `/ready` may be asked by any name: orchestrators check by address.
2. A request from another site's page, by `Origin` or `Sec-Fetch-Site`, is refused unless `cors_origins` lists the page.
3. A body must be JSON by its `Content-Type`, which no HTML form can send. Uploads alone are forms:
   `multipart/form-data` on `/v1/files` and on the parts of `/v1/uploads`. A page that sends one is caught by check 2.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.hosts import ANY_HOST, is_loopback, is_same_host, normal_host, normal_origin, split_authority
from config.serve import ServeConfig
from serve.api.responses import error_response
from serve.errors import CrossSiteError, ForeignHostError, MediaTypeError, ServeError

OPEN_TO_EVERY_HOST = frozenset({"/health", "/ready"})

_UPLOADS = re.compile(r"/v1/(?:files|uploads/[^/]+/parts)")

_MEDIA_TYPES = {"application/json": "JSON", "multipart/form-data": "a form"}
_OWN_SITES = frozenset({"same-origin", "none"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})
_PREFLIGHT_AGE_S = 600
_EXPOSED = "x-request-id, retry-after, x-lorikeet-adapter, x-lorikeet-digest, x-lorikeet-cold, x-lorikeet-defaults"


@dataclass(frozen=True)
class WebRules:
    """Accepted host names (None: all) and allowed CORS origins."""

    hosts: frozenset[str] | None
    origins: frozenset[tuple[str, str, str]]

    @classmethod
    def of(cls, config: ServeConfig, host: str) -> "WebRules":
        """The rules of a listener of `config` on `host`."""
        allowed = config.allowed_hosts
        is_open = ANY_HOST in allowed if allowed is not None else not is_loopback(host)
        own = normal_host(host)
        names = {own} if own is not None and own not in _WILDCARDS else set()
        origins = {origin for text in config.cors_origins if (origin := normal_origin(text)) is not None}
        return cls(None if is_open else frozenset({*names, *(allowed or ())}), frozenset(origins))

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Check a request's host, origin and media type.

        Raises:
            ForeignHostError: It was sent to another host name, or to several.
            CrossSiteError: Another site's page has sent it.
            MediaTypeError: It has the content type is not JSON.
        """
        if path not in OPEN_TO_EVERY_HOST:
            self._check_host(headers)
        self._check_site(headers)
        if method == "POST":
            _check_media_type(headers, "multipart/form-data" if _UPLOADS.fullmatch(path) else "application/json")

    def allowed_origin(self, headers: Headers) -> str | None:
        """The origin of a page that may use this server across sites, as the browser wrote it."""
        origins = headers.getlist("origin")
        return origins[0] if len(origins) == 1 and normal_origin(origins[0]) in self.origins else None

    def _check_host(self, headers: Headers) -> None:
        if not headers.getlist(
            "host"
        ):  # an old client, such as a readiness check in HTTP/1.0; a browser always sends one
            return
        host = _host(headers)
        if host is None or not (self.hosts is None or is_loopback(host[0]) or host[0] in self.hosts):
            shown = ", ".join(headers.getlist("host"))[:80]
            raise ForeignHostError(
                f"This server does not accept requests for the host {shown!r}. Use its loopback address, or have its "
                "operator add the name to `allowed_hosts` in serve.yaml."
            )

    def _check_site(self, headers: Headers) -> None:
        if self.allowed_origin(headers) is not None:
            return
        origins, host = headers.getlist("origin"), _host(headers)
        is_own = all(
            host is not None and (origin := normal_origin(text)) is not None and is_same_host(origin, host)
            for text in origins
        )
        if not is_own or len(origins) > 1 or not _OWN_SITES.issuperset(headers.getlist("sec-fetch-site")):
            shown = ", ".join(origins)[:80] or "another site"
            raise CrossSiteError(
                f"Web pages from {shown!r} may not use this server. Its operator can add the origin to "
                "`cors_origins` in serve.yaml."
            )


class Guard:
    """The application behind `WebRules`, with CORS for the origins that they list.

    Args:
        refused: Called with the error of each request that does not pass.
    """

    def __init__(self, app: ASGIApp, rules: WebRules, refused: Callable[[ServeError], None]) -> None:
        self._app = app
        self._rules = rules
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._rules.origins:
            send = _with_cors(send, self._rules.allowed_origin(headers))
        answer = self._guard_response(scope["method"], scope["path"], headers) or self._app
        await answer(scope, receive, send)

    def _guard_response(self, method: str, path: str, headers: Headers) -> ASGIApp | None:
        """The response to a refused request or a CORS preflight; None if the application handles the request."""
        try:
            self._rules.check(method, path, headers)
        except ServeError as error:
            self._refused(error)
            return error_response(error)
        is_preflight = method == "OPTIONS" and "access-control-request-method" in headers
        return _preflight(headers) if is_preflight and self._rules.allowed_origin(headers) else None


def _host(headers: Headers) -> tuple[str, str] | None:
    """Of the one `Host` header; None where there are none or several, or it is malformed."""
    hosts = headers.getlist("host")
    return split_authority(hosts[0]) if len(hosts) == 1 else None


def _check_media_type(headers: Headers, wanted: str) -> None:
    """A request with neither body nor content type is accepted."""
    types = headers.getlist("content-type")
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if not types and not has_body:
        return
    if [text.partition(";")[0].strip().lower() for text in types] != [wanted]:
        raise MediaTypeError(f"The body must be {_MEDIA_TYPES[wanted]}: send it with `content-type: {wanted}`.")


def _preflight(headers: Headers) -> Response:
    """What a browser asks before it sends a page's request. No credentials: keys go in a header of the page's own."""
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": str(_PREFLIGHT_AGE_S),
        },
    )


def _with_cors(send: Send, origin: str | None) -> Send:
    """Tell the browser that this page may read the answer; caches must keep the answers to other pages apart."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.add_vary_header("Origin")
            if origin is not None:
                headers["access-control-allow-origin"] = origin
                headers["access-control-expose-headers"] = _EXPOSED
        await send(message)

    return send_with_headers
