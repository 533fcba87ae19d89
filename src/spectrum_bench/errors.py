"""One family of exceptions: what a user can put right is one line; a bug keeps its traceback."""


class UserError(Exception):
    """Bad input. The message is one line that names the fix; entry scripts print it and exit with 1."""


class NotFinite(RuntimeError):
    """The sample holds NaN or infinity."""


class MetricUnavailable(Exception):
    """A metric that cannot be computed here. Tables show a dash and this reason, never a made-up number."""

    def __init__(self, metric: str, missing: str, fix: str):
        super().__init__(f"{metric}: {missing}; {fix}")
