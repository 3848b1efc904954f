"""`/v1/chat/completions`: what is asked and what is answered."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from lamina.web.schema import Body, Count, Drawing, Usage

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MOST_TOOLS = 128

# -- asked -----------------------------------------------------------------------------------------


class TextPart(Body):
    """A piece of a message: only text can be read."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class CalledFunction(Body):
    """A function that an answer called."""

    name: str
    arguments: str


class AskedCall(Body):
    """A call in an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class AskedMessage(Body):
    """One turn. Fields that answers carry may be sent back, where they say nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[AskedCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class FunctionSchema(Body):
    """A function that may be called."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Calls made unasked match the schema too, if the base's template marks where a call begins;
    those that `tool_choice` demands always do."""


class Tool(Body):
    """A tool: only functions are known."""

    type: Literal["function"]
    function: FunctionSchema


class NamedFunction(Body):
    """The function to call."""

    name: str


class NamedChoice(Body):
    """One function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema and its name."""

    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Ignored: answers always match the schema."""


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(Drawing):
    """Continue a conversation."""

    messages: Annotated[list[AskedMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    """Longest answer; its older name is `max_tokens` (what the context leaves)."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    """Whether one answer may call several functions (true)."""
    response_format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_completion_tokens or max_tokens, not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        wanted = self.tool_choice
        if wanted not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice demands a call, but there are no tools")
        if isinstance(wanted, NamedChoice) and wanted.function.name not in names:
            raise ValueError(f"tool_choice: no tool is called {wanted.function.name!r}")
        return self

    @property
    def longest(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the model hears of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The schema that the answer's content must match, if any."""
        if isinstance(self.response_format, SchemaFormat):
            given = self.response_format.json_schema.json_schema
            return {} if given is None else given
        return {"type": "object"} if isinstance(self.response_format, ObjectFormat) else None


# -- answered; fields that are not set are not sent ------------------------------------------------


class TopToken(BaseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopToken):
    """A token that was said."""

    top_logprobs: list[TopToken]


class Logprobs(BaseModel):
    """Of each token, in order."""

    content: list[TokenLogprob]
    refusal: None = None


class Called(BaseModel):
    """A function's name and its arguments, as JSON text."""

    name: str
    arguments: str


class Call(BaseModel):
    """A call; in a stream with its place among the answer's calls."""

    index: int = 0
    id: str
    type: Literal["function"]
    function: Called


class Said(BaseModel):
    """An answer, or a piece of one."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    tool_calls: list[Call] = []


Ending = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """One whole answer."""

    index: int
    message: Said
    logprobs: Logprobs | None
    finish_reason: Ending


class ChatCompletion(BaseModel):
    """Whole answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    """The first digits of the stack's digest."""
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Said
    logprobs: Logprobs | None = None
    finish_reason: Ending | None


class ChatChunk(BaseModel):
    """An event of a stream; the last but `[DONE]` may have the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
