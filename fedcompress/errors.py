"""Every exception that fedcompress raises on purpose.

FedCompressError
├── ConfigError                 a setting is wrong: field, value, rule
│   └── UnknownNameError        a text does not name one of the choices
├── MissingPackageError         an optional package is absent; says what to install
├── WireError                   received bytes are not a valid envelope
│   ├── TruncatedError          fewer bytes than promised
│   ├── TrailingBytesError      more bytes than promised
│   ├── BadMagicError           not an envelope at all
│   ├── VersionError            an envelope of a version this library does not know
│   ├── ChecksumError           bytes changed on the way
│   ├── LimitError              a size beyond what the receiver allows
│   ├── HeaderError             the header is malformed or lacks a field
│   └── PayloadError            a section does not decode for the receiver's layout
├── LayoutError                 tensors and layout do not fit together
├── NonFiniteError              NaN or infinity where numbers are needed
├── MismatchError               sender and receiver hold different things: base, run, layout
├── StateError                  durable state is corrupt or missing
│   └── LockedError             another process holds it
├── NoSpaceError                a disk is full; names the file
├── AccessError                 a file cannot be opened now: which, and why
├── IdentityError               not signed by whom it must be signed by, or sent a second time
├── AdmissionError              the coordinator refuses an update; has a reason code
├── TrainingError               local training failed
└── ProcessError                a process that we started failed or could not start
"""

from __future__ import annotations

from collections.abc import Iterable


def one_of(choices: Iterable[object], value: object = "") -> str:
    """Return the rule of a setting that must be one of some names, with the name that was probably meant.

        >>> one_of(["topk", "ternary"], "ternery")
        "must be one of ['topk', 'ternary']: did you mean ternary?"

    Args:
        choices: the names, in the order in which they are listed.
        value: what was found, with or without parameters in parentheses.
    """
    from difflib import get_close_matches  # only where there is an error

    names = [str(choice) for choice in choices]
    found = str(value)[:80].partition("(")[0].strip().strip("'\"")
    plain = {name.lower().replace("_", "-"): name for name in names}
    close = get_close_matches(found.lower().replace("_", "-"), plain, n=1, cutoff=0.7) if found else []
    rule = f"must be one of {names}"
    return f"{rule}: did you mean {plain[close[0]]}?" if close else rule


class FedCompressError(Exception):
    """The base class of all errors that are raised on purpose: catching it catches them all."""


class ConfigError(FedCompressError):
    """A setting is wrong. Reads ``field: value: rule``.

    Args:
        field: dotted name of the setting, as the user wrote it.
        value: the value found.
        rule: what it has to be.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: {value}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class UnknownNameError(ConfigError):
    """A text does not name one of the choices, such as a codec, a merge rule or an optimizer."""


def error_name(error: Exception) -> str:
    """Return the name under which an error is reported to others: of ``ConfigError`` for all kinds of it."""
    return ConfigError.__name__ if isinstance(error, ConfigError) else type(error).__name__


class MissingPackageError(FedCompressError):
    """An optional package is absent; the message names the command that installs it."""


class WireError(FedCompressError):
    """Received bytes are not a valid envelope."""


class TruncatedError(WireError):
    """There are fewer bytes than the envelope promises."""


class TrailingBytesError(WireError):
    """There are more bytes than the envelope promises."""


class BadMagicError(WireError):
    """The bytes do not start like an envelope."""


class VersionError(WireError):
    """The envelope's version or flags are unknown to this library."""


class ChecksumError(WireError):
    """The SHA-256 at the end does not match the bytes before it."""


class LimitError(WireError):
    """A size is beyond what the receiver allows."""


class HeaderError(WireError):
    """The header is malformed, or lacks a field."""


class PayloadError(WireError):
    """A section does not decode for the receiver's layout."""


class LayoutError(FedCompressError):
    """Tensors and layout do not fit together."""


class NonFiniteError(FedCompressError):
    """A tensor contains NaN or infinity where finite numbers are needed; the message names it."""


class MismatchError(FedCompressError):
    """Sender and receiver hold different things, such as another base, run or layout.

    Args:
        code: what differs; it is stable, for programs.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StateError(FedCompressError):
    """Durable state is corrupt or missing."""


class LockedError(StateError):
    """Another process holds the state directory."""


class NoSpaceError(FedCompressError):
    """A disk is full. What was committed is whole, and what was being written will be done again.

    This is no ``StateError``: nothing is damaged, so nothing is to be repaired.

    Args:
        path: the file that could not be written.
    """

    def __init__(self, path: object) -> None:
        super().__init__(f"disk: {path}: no space left: free some; what was committed is whole, the rest is done again")
        self.path = str(path)


class AccessError(FedCompressError):
    """A file of a state directory cannot be opened now: too many are open, it has other rights, a mount is gone.

    This is no ``StateError``: it says nothing of the file's bytes, so nothing is to be given up or repaired.

    Args:
        path: the file.
        cause: error of the system or of SQLite.
    """

    def __init__(self, path: object, cause: BaseException) -> None:
        super().__init__(f"{path}: cannot be opened now: {getattr(cause, 'strerror', None) or cause}")
        self.path = str(path)


class IdentityError(FedCompressError):
    """A task or downlink is not signed by the coordinator, or is not for this site.

    Args:
        code: reason; it is stable, for programs.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AdmissionError(FedCompressError):
    """The coordinator refuses an update.

    Args:
        code: one of ``server.round.admission.REASONS``.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TrainingError(FedCompressError):
    """Local training has failed.

    Args:
        code: reason; it is stable, for programs.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProcessError(FedCompressError):
    """A process that we started failed, or could not be started."""
