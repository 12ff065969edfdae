"""The few exceptions the core raises on purpose; `sdxl_cli.boundary` turns them into text and an exit code."""


class SdxlError(Exception):
    """Something a user can cause and can mend.

    Args:
        message: what is wrong, naming the thing; one sentence without a final period.
        hint: what to do about it, if there is something to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SdxlError):
    """A flag, a prompt or an argument that cannot be honoured."""

    exit_code = 2


class PresetError(UsageError):
    """A preset that does not exist, does not parse or does not fit the schema."""


class ScheduleError(UsageError):
    """Noise levels that are too few, not finite or do not decrease."""


class DeviceError(UsageError):
    """A device, dtype or attention backend that this machine does not offer."""


class CheckpointError(SdxlError):
    """A model file that is missing, broken, unsafe or of the wrong kind."""

    exit_code = 4


class MemoryExhaustedError(SdxlError):
    """The device or the host ran out of memory."""

    exit_code = 5


class OutputError(SdxlError):
    """A picture or a table that could not be written."""


class NumericsError(SdxlError):
    """A latent or picture that is not finite; it is never written."""
