"""A language model that answers from a script, for tests of what asks one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import CustomLLM


class ScriptedLLM(CustomLLM):
    """Give the answers of a script in turn, the last one from then on, and note the prompts."""

    _answers: list[str] = PrivateAttr()
    _prompts: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__()
        self._answers = list(answers)

    @property
    def prompts(self) -> list[str]:
        """What was asked, in turn."""
        return self._prompts

    @property
    def metadata(self) -> LLMMetadata:
        """Say that it completes texts."""
        return LLMMetadata(model_name="scripted")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the next answer."""
        self._prompts.append(prompt)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return CompletionResponse(text=answer)

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Return the next answer in one piece."""
        answer = self.complete(prompt).text

        def stream() -> CompletionResponseGen:
            yield CompletionResponse(text=answer, delta=answer)

        return stream()
