"""The errors a person can cause and mend: each is one line saying what, where and how to mend it."""


class PipelineError(Exception):
    """Any error that the command line prints as one line, with exit code 1."""


class ParamsError(PipelineError):
    """params.yaml, `--params` or `--set` holds something that cannot be used."""


class PluginError(PipelineError):
    """A plugin cannot be loaded, breaks its contract, or is not there; names the plugin's file."""


class DataError(PipelineError):
    """A text, token file or split is missing, damaged or does not fit."""


class CheckpointError(PipelineError):
    """A checkpoint or an export is missing, damaged or does not fit."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and goes on next time
    """SIGINT or SIGTERM arrived and the run has been saved; the process exits with 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
