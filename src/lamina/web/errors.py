"""Every refusal in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from lamina.core.errors import (
    BusyError,
    FleetError,
    LaminaError,
    MissingPartError,
    StoreError,
    TrustError,
    UnknownNameError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not answered."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON document."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else _TYPES[400])
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The HTTP response. Everything beyond ASCII is escaped: a message may quote anything."""
        return Response(
            json.dumps(self.body()),
            self.status,
            headers=dict(self.headers),
            media_type="application/json",
        )


def refusal(error: LaminaError, *, param: str | None = None) -> Refusal:
    """What a client hears of one of our errors."""
    message = error.render()
    if isinstance(error, UnknownNameError):
        return Refusal(404, message, "model_not_found", param or "model")
    if isinstance(error, TrustError):  # without the hint, which names a file of the server's
        return Refusal(403, "; ".join((error.message, *error.faults)), "not_trusted", "model")
    if isinstance(error, BusyError):
        return Refusal(429, message, "busy", param, {"retry-after": "1"})
    if isinstance(error, MissingPartError):
        return Refusal(501, message, "not_installed", param)
    if isinstance(error, StoreError):
        return Refusal(503, message, "store_unavailable", param)
    if isinstance(error, FleetError):
        return Refusal(503, message, "no_replica", param)
    if type(error) is LaminaError:  # an engine's own failure, which is no fault of who asked
        return Refusal(500, message, "failed", param)
    return Refusal(400, message, None, param)


def invalid(faults: Sequence[Mapping[str, Any]]) -> Refusal:
    """What pydantic found in a body: every fault, the first one's place as `param`."""
    lines = [_sentence(fault) for fault in faults]
    param = _place(faults[0]["loc"]) if faults else ""
    text = lines[0] if len(lines) == 1 else "\n".join(["this request cannot be read", *lines])
    return Refusal(400, text, _code(faults), param or None)


def _code(faults: Sequence[Mapping[str, Any]]) -> str | None:
    kinds = {str(fault["type"]) for fault in faults}
    if kinds == {"extra_forbidden"}:
        return "unknown_parameter"
    return "invalid_json" if "json_invalid" in kinds else None


def _sentence(fault: Mapping[str, Any]) -> str:
    place = _place(fault["loc"])
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault.get('ctx', {}).get('error', fault['msg'])}"
    if fault["type"] == "extra_forbidden":
        owner = _place(fault["loc"][:-1])
        name = f"{owner}.{fault['loc'][-1]}" if owner else str(fault["loc"][-1])
        return f"{name}: this server knows no such parameter; leave it out"
    return f"{place or 'body'}: {fault['msg']}"


def _place(location: Sequence[str | int]) -> str:
    """`messages[0].content`, without the words that pydantic adds for alternatives."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in {"body", "str", "int", "float"}:
            text += f".{part}" if text else part
    return text
