"""The one hierarchy of errors. A message says what was wrong, the value, and what to do."""


class HeadwayError(Exception):
    """Base of every error Headway raises on purpose."""


class ConfigError(HeadwayError):
    """A setting, flag or environment variable has a value that cannot be used."""


class InvalidRequest(HeadwayError):
    """A client's request is malformed or out of range; `param` names the field, `code` is OpenAI's error code where one exists."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelError(HeadwayError):
    """A model file, tokenizer or chat template cannot be used."""


class PullError(ModelError):
    """A model could not be fetched or did not verify."""


class UnsupportedMachine(HeadwayError):
    """This CPU or platform lacks something Headway needs."""


class CapacityError(HeadwayError):
    """Something does not fit a fixed size; carries what was needed and what there is."""

    def __init__(self, message: str, *, needed: int, capacity: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity


class EngineDied(HeadwayError):
    """The engine process ended or stopped answering while work was in flight."""


class DurabilityLost(HeadwayError):
    """A sync to disk failed; nothing written since may be acknowledged."""


class JournalCorrupt(HeadwayError):
    """A journal holds a hole or a damaged record that a crash cannot explain."""


class Locked(HeadwayError):
    """Another process owns this directory."""
