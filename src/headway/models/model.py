"""A model on disk, opened: its file, configuration, and (when asked for) tokenizer and chat template."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import ModelError
from headway.models import architecture, hub, vocabulary
from headway.models.architecture import LlamaConfig
from headway.models.gguf import GgufFile

if TYPE_CHECKING:
    from headway.models.chat import ChatTemplate
    from headway.models.tokenizer import Tokenizer


class Model:
    """One opened model. `fingerprint` identifies its header (metadata, vocabulary, tensor list) and size, hexadecimal; it is not a
    check of the weights, which `headway pull` verified with the sha256 of the whole file."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.file = GgufFile(path)
        try:
            self.config: LlamaConfig = architecture.from_metadata(self.file.metadata, self.file.tensors)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.file.header_sha256()[:32]}-{self.file.size_bytes:x}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from headway.models.tokenizer import Tokenizer

        return Tokenizer(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> vocabulary.Vocabulary:
        return vocabulary.from_metadata(self.file.metadata)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation; needs no tokenizer, so that an engine can have them without importing one."""
        return self._vocabulary.stop_ids

    @property
    def chat_template_text(self) -> str | None:
        """The file's own Jinja text, or None for a base model."""
        text = self.file.metadata.get("tokenizer.chat_template")
        return text if isinstance(text, str) else None

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template of the file, or None for a base model."""
        from headway.models.chat import ChatTemplate

        return None if self.chat_template_text is None else ChatTemplate(self.chat_template_text, self.tokenizer)

    @property
    def rope_freq_factors(self) -> npt.NDArray[np.float32] | None:
        """float32 [rope_dim/2] or None; see `architecture.rope_freq_factors`."""
        return architecture.rope_freq_factors(self.file.tensors)

    @cached_property
    def parameters(self) -> int:
        """How many weights the file holds."""
        total = 0
        for tensor in self.file.tensors.values():
            count = 1
            for size in tensor.shape:
                count *= size
            total += count
        return total

    def describe(self) -> dict[str, Any]:
        """What a person or `/v1/models` wants to know, as plain values."""
        types: dict[str, int] = {}
        for tensor in self.file.tensors.values():
            types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.data.nbytes
        return {
            "name": self.name,
            "title": self.config.name,
            "path": str(self.path),
            "file_bytes": self.file.size_bytes,
            "parameters": self.parameters,
            "layers": self.config.layers,
            "context_tokens": self.config.context_tokens,
            "vocab": self.config.vocab,
            "chat": self.chat_template_text is not None,
            "bytes_by_type": types,
            "fingerprint": self.fingerprint,
        }

    def close(self) -> None:
        """Lets go of the file."""
        self.file.close()


def open_model(name_or_path: str | Path) -> Model:
    """Opens a pulled model by its catalogue name, or any GGUF file by its path.

    Something with a directory separator or the ending .gguf is a path, anything else a name; raises `ModelError` with the remedy.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".gguf"):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ModelError(f"{path}: no such file. Give the path of a GGUF file, or a name that `headway models` lists.")
        return Model(path.stem, path)
    return Model(text, hub.path_of(text))
