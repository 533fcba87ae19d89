"""One family of exceptions, and the exit codes of every command.

A command prints a UserError as one line and ends with exit code 1. Any other exception is a bug and keeps its
traceback. `debug=true` or SPECTRUM_BENCH_DEBUG=1 shows the traceback of a UserError too.
"""

SOME_FAILED = 3  # exit code: the run ended, but some samples could not be made
INTERRUPTED = 130  # exit code after Ctrl-C, the same as the shell's; after TERM it is 143, after HUP 129
BROKEN_PIPE = 141  # exit code where nobody reads the output any more, also the shell's


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the fix."""


class BadValue(UserError, ValueError):
    """A setting or constant is out of range or of the wrong kind."""


class DoesNotFit(UserError, ValueError):
    """An algorithm does not fit a denoiser, or two parts of an algorithm do not fit together."""


class MetricUnavailable(UserError):
    """A metric cannot be computed here. Tables show a dash and this reason, never a made-up number."""

    def __init__(self, metric: str, missing: str, fix: str):
        super().__init__(f"{metric}: {missing}; {fix}")


class NotFinite(RuntimeError):
    """The decoded sample holds NaN or infinity. This sample fails; the next one may succeed."""
