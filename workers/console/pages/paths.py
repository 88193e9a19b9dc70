"""Ids in paths. Producers choose them, so they hold slashes, dots, quotes, anything."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

LONGEST = 4096  # bytes of an id, decoded; longer ones are in no topic that anyone reads


class _AnyPath(Convertor[str]):
    """`{rest:any}` in a route: whatever follows. `{rest:path}` does not take an id with a line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """Return the rest as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Return the rest as it is."""
        return value


register_url_convertor("any", _AnyPath())


class PathError(ValueError):
    """The path holds no id; the text says why."""


def path_parts(request: Request) -> list[str]:
    """Return the path's parts, each percent-decoded: `/v1/users/a%2Fb/state` → `["v1", "users", "a/b", "state"]`.

    The framework's parameters come from the decoded path, in which the slash of an id is one of the path.

    Raises:
        PathError: a part is not UTF-8 text, or is too long.
    """
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    parts = []
    for part in raw.split(b"?")[0].lstrip(b"/").split(b"/"):
        data = unquote_to_bytes(part)
        if len(data) > LONGEST:
            raise PathError(f"an id of {len(data):,} bytes; at most {LONGEST:,} are taken")
        try:
            parts.append(data.decode())
        except UnicodeDecodeError:
            raise PathError("an id in the path is not UTF-8 text, percent-encoded") from None
    return parts


def path_of(*parts: str) -> str:
    """Return the path of these parts, percent-encoded: the inverse of `path_parts`."""
    return "".join("/" + quote(part, safe="") for part in parts)
