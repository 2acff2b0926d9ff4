"""How a read can fail, as problems."""

from gateway.problems import (
    CHALLENGE,
    CREDENTIALS_OUTDATED,
    DATABASE_UNAVAILABLE,
    SEARCH_TIMEOUT,
    ProblemError,
    retry_after,
)


class DatabaseUnavailableError(ProblemError):
    """Postgres did not answer a read within its deadline, or refused to."""

    def __init__(self) -> None:
        super().__init__(DATABASE_UNAVAILABLE, headers={"Retry-After": "1"})


class SearchTimeoutError(ProblemError):
    """Postgres has worked on a search for as long as it may, and was stopped."""

    def __init__(self) -> None:
        super().__init__(SEARCH_TIMEOUT, headers=retry_after())


class CredentialsOutdatedError(ProblemError):
    """The owner's credentials are not the caller's any more, or the owner is gone."""

    def __init__(self) -> None:
        super().__init__(CREDENTIALS_OUTDATED, headers=CHALLENGE)
