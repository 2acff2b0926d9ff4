"""The errors of reads, as problems."""

from gateway.problems import (
    CREDENTIALS_OUTDATED,
    DATABASE_UNAVAILABLE,
    INVALID_TOKEN_CHALLENGE,
    SEARCH_TIMEOUT,
    ProblemError,
    build_retry_after,
)


class DatabaseUnavailableError(ProblemError):
    """Postgres did not answer a read within its deadline, or rejected it."""

    def __init__(self) -> None:
        super().__init__(DATABASE_UNAVAILABLE, headers=build_retry_after())


class SearchTimeoutError(ProblemError):
    """Postgres cancelled a search at its time limit."""

    def __init__(self) -> None:
        super().__init__(SEARCH_TIMEOUT, headers=build_retry_after())


class CredentialsOutdatedError(ProblemError):
    """The owner's credentials have changed, or the owner is deleted."""

    def __init__(self) -> None:
        super().__init__(CREDENTIALS_OUTDATED, headers=INVALID_TOKEN_CHALLENGE)
