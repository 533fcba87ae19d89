"""One family of exceptions, and the exit codes of every command.

Commands print a UserError as one line and end with exit code 1; whatever else is raised is a bug and keeps its
traceback. `debug=true` or SPECTRUM_BENCH_DEBUG=1 shows the traceback of a UserError too.
"""

SOME_FAILED = 3  # exit code: the run went to its end, but not every sample could be made
INTERRUPTED = 130  # exit code, as the shell's own after Ctrl-C


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the fix."""


class BadValue(UserError, ValueError):
    """A setting or constant that makes no sense."""


class DoesNotFit(UserError, ValueError):
    """An algorithm and a denoiser, or two parts of an algorithm, that do not go together."""


class MetricUnavailable(UserError):
    """A metric that cannot be computed here. Tables show a dash and this reason, never a made-up number."""

    def __init__(self, metric: str, missing: str, fix: str):
        super().__init__(f"{metric}: {missing}; {fix}")


class NotFinite(RuntimeError):
    """The decoded sample holds NaN or infinity: this sample fails, the next one may not."""
