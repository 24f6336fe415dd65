"""A model that says what it was told to say, for evaluations without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inspect_ai.model import ChatMessage, Model, ModelOutput, ModelUsage, get_model

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "mockllm/model"
NO_COUNTING = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
"""Without it inspect-ai counts tokens, with a table that it downloads."""

Say = tuple[str, dict[str, Any]] | str
"""A call of a tool, by its name and arguments; or text."""


def model_saying(words: Sequence[Say]) -> Model:
    """Says them one after the other, to each sample."""

    def output(messages: list[ChatMessage], *_: Any) -> ModelOutput:
        word = words[sum(one.role == "assistant" for one in messages)]
        if isinstance(word, str):
            said = ModelOutput.from_content(MODEL, word)
        else:
            said = ModelOutput.for_tool_call(MODEL, *word)
        said.usage = NO_COUNTING
        return said

    return get_model(MODEL, custom_outputs=output, memoize=False)
