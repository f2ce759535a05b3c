"""A model's folder, for all but its weights: config, tokenizer, processors, generation settings; each read when asked.

A part that is not there is told as what is missing and what to do; `require` asks for several at plan time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hfbatch.trust import without_code

_MADE_BY = {
    "tokenizer": "tokenizer.json or its vocabulary",
    "image_processor": "preprocessor_config.json",
    "feature_extractor": "preprocessor_config.json",
    "processor": "processor_config.json, or a tokenizer and preprocessor_config.json",
}

_EXTRAS = {"image_processor": "vision", "feature_extractor": "audio", "processor": "audio,vision"}


@dataclass(frozen=True)
class Checkpoint:
    """What preprocess and postprocess know of a model. Parts load once, from `folder` alone, never from the network."""

    folder: str
    trust_remote_code: bool = False
    code_revision: str | None = None
    companions: Mapping[str, str] = field(default_factory=dict)  # name -> folder of a model that goes with this one

    @cached_property
    def config(self) -> Any:
        """The PretrainedConfig."""
        return self._load("AutoConfig")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, without the truncation and fixed padding that tokenizer.json may carry."""
        tokenizer = self._part("tokenizer", "AutoTokenizer")
        self._refuse_empty(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        return tokenizer

    def copy_tokenizer(self) -> Any:
        """A tokenizer of one's own, to change."""
        with _unadvised():
            return deepcopy(self.tokenizer)

    @cached_property
    def image_processor(self) -> Any:
        """Images to pixel values."""
        return self._part("image_processor", "AutoImageProcessor")

    @cached_property
    def feature_extractor(self) -> Any:
        """Sound to input values or features."""
        return self._part("feature_extractor", "AutoFeatureExtractor")

    @cached_property
    def processor(self) -> Any:
        """The processor of a model with several kinds of input."""
        return self._part("processor", "AutoProcessor")

    @cached_property
    def generation_config(self) -> Any:
        """The checkpoint's GenerationConfig; read from config.json where it has no file of its own."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.folder, local_files_only=True)
        except OSError:  # not from self.config: it drops these settings as it is loaded
            older = {"config_file_name": "config.json", "_from_model_config": True}
            return GenerationConfig.from_pretrained(self.folder, local_files_only=True, **older)

    def require(self, parts: Iterable[str]) -> None:
        """ValueError for the first of `parts` that is not in the folder."""
        for part in parts:
            getattr(self, part)

    def _refuse_empty(self, tokenizer: Any) -> None:
        """ValueError where transformers made a tokenizer of no file, one that knows special tokens and no words."""
        names = set((getattr(tokenizer, "vocab_files_names", None) or {}).values()) | {"tokenizer.json", "tekken.json"}
        if len(names) > 2 and not self.trust_remote_code and not any((Path(self.folder) / n).is_file() for n in names):
            raise ValueError(f"it has no tokenizer ({' or '.join(sorted(names - {'tekken.json'}))})")

    def _part(self, name: str, auto: str) -> Any:
        try:
            return self._load(auto)
        except ImportError as error:
            cure = f"pip install 'hfbatch[{_EXTRAS[name]}]'; " if name in _EXTRAS else ""
            raise ValueError(f"its {name} needs a package that is not installed: {cure}{_first(error)}") from error
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"it has no {name} ({_MADE_BY[name]}): {_first(error)}") from error

    def _load(self, auto: str) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()  # it advises to install torchvision
        with without_code(self.folder, self.trust_remote_code), _unadvised():
            return getattr(transformers, auto).from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=self.trust_remote_code,  # False, not None: at None transformers asks on the terminal
                code_revision=self.code_revision,
            )


@contextmanager
def _unadvised() -> Iterator[None]:
    """Without the advice of Marian's tokenizer, which it gives whenever it is made; it does without that package."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        yield


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
