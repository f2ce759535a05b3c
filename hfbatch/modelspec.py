"""How a model is named in a job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hfbatch.origin import Spec


class ModelSpec(Spec):
    """The model: which checkpoint, at which revision, in which precision."""

    id: Annotated[str, Field(min_length=1, description="Hub id (owner/name) or a local directory")]
    revision: Annotated[
        str | None,
        Field(description="branch, tag or commit; resolved to the full commit before the first row (default: main)"),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="precision of the weights; auto: as the checkpoint was saved"),
    ] = "float32"
    attn_implementation: Annotated[
        str | None, Field(description="transformers' attention implementation; null: its default")
    ] = None
    allow_pickle: Annotated[
        bool, Field(description="load pickled weights where there are no safetensors (torch's weights_only)")
    ] = False
    trust_remote_code: Annotated[
        bool,
        Field(description="run code from the model's repository; needs --trust-remote-code and both full commits too"),
    ] = False
    code_revision: Annotated[
        str | None, Field(description="full commit of that code; the same as revision where it lies beside the model")
    ] = None

    def dtype_for(self, config: Any) -> str:
        """The precision to load a checkpoint with `config` in; `auto` is what that says."""
        if self.dtype != "auto":
            return self.dtype
        return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
