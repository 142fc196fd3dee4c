"""Unpickling LlamaIndex components whose embedder goes with them.

LlamaIndex makes an unpickled component anew from its fields. That would lose what is not a field
for a good reason: a service's key, and the embedder itself where no name leads to it.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.schema import BaseComponent


class WithEmbedder(BaseComponent):
    """A component that keeps its embedder in a private attribute `_embedder`, and pickles it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over all that was pickled, and the defaults of fields that could not be."""
        private = state.get("__pydantic_private__") or {}
        if "_embedder" not in private:
            super().__setstate__(state)
            return
        BaseModel.__setstate__(self, state)
        for name, field in type(self).model_fields.items():
            if name not in self.__dict__:
                self.__dict__[name] = field.get_default(call_default_factory=True)
