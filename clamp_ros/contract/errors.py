"""The errors of the stack. Each message names the value, what was expected, and what to do about it."""


class ClampError(Exception):
    """A fault the user can understand and mend; the command line shows its message without a traceback."""


class ContractError(ClampError):
    """A value breaks the contract: a wrong shape, dtype, joint name, range or a number that is not finite."""


class ConfigError(ClampError):
    """A parameter, launch argument or configuration key is unknown or outside its range."""


class ArtifactError(ClampError):
    """A policy artifact is missing, corrupt, or does not fit the robot or cameras it is to run on."""


class TransformError(ClampError):
    """A transform cannot be looked up. Its subclasses say why."""


class UnknownFrameError(TransformError):
    """The frame has never been seen, or two frames are not connected."""


class PastExtrapolationError(TransformError):
    """The time asked for is older than the history that is kept."""


class FutureExtrapolationError(TransformError):
    """The time asked for is newer than the newest transform."""


class ArmError(ClampError):
    """An arm's bus or one of its motors does not answer, is not the one expected, or reports a fault."""


class RecordError(ClampError):
    """A bag cannot be written or read, or fails its audit."""


class SimulationError(ClampError):
    """The simulated world cannot be built, rendered or stepped."""


class CameraError(ClampError):
    """A camera is absent, in use by another program, or has stopped sending; it may come back."""


class CalibrationError(ClampError):
    """Cameras cannot be calibrated from what was seen: no board, too few poses, another board, a moving arm."""
