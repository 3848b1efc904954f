"""The frozen pydantic base of every configuration and manifest: unknown keys are errors."""

import difflib
import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from lamina.core.digest import canonical_json, digest_bytes
from lamina.core.errors import UsageError
from lamina.core.plain import line_fault


class Value(BaseModel):
    """Frozen, hashable where its fields are, strict about keys, with one canonical JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values have equal bytes, hence equal digests."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def content_digest(self) -> str:
        """sha256 of `to_bytes()`."""
        return digest_bytes(self.to_bytes())

    @classmethod
    def parse(cls, data: bytes | str | dict[str, Any], what: str) -> Self:
        """Read JSON (or a dict), naming every fault at once. Raises UsageError."""
        try:
            loaded = data if isinstance(data, dict) else json.loads(data)
            return cls.model_validate(loaded)
        except ValidationError as error:
            faults = [_fault(cls, item) for item in error.errors()]
            raise UsageError(f"{what} is not valid", faults=faults) from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{what} is not JSON: {error}") from None

    @classmethod
    def parse_exactly(cls, data: bytes, what: str) -> Self:
        """Read JSON bytes in which every number, text and truth value is of its field's own type:
        no "16" for 16, no true for 1. Raises UsageError."""
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            faults = [_fault(cls, item) for item in error.errors()]
            raise UsageError(f"{what} is not valid", faults=faults) from None


def _fault(model: type[BaseModel], item: Any) -> str:
    """One pydantic error as a sentence; an unknown key gets the nearest known one."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{where or 'value'}: {item['msg']}"
    near = difflib.get_close_matches(str(item["loc"][-1]), list(model.model_fields), n=1)
    known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(model.model_fields)}"
    return f"{where}: unknown key; {known}"


def _check_line(text: str) -> str:
    fault = line_fault(text)
    if fault:
        raise ValueError(fault)
    return text


Line = Annotated[str, AfterValidator(_check_line)]
"""Text of one line: at most MAX_LINE characters, no control characters, no bidi overrides."""
