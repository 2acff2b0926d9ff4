"""The errors that end the program with a message."""


class ClientError(Exception):
    """An error that the user has to fix; its text is shown."""


class UnavailableError(Exception):
    """A failure that may be temporary; the request is retried."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
