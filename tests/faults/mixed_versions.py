"""What gateways of the version before answer to requests that they do not know is not evidence about the others."""

from tests.faults.history import UNKNOWN_OPERATION, Answer, Disturbance, History

OLDER_GATEWAYS = {"gateway-before", "rollback"}
UNKNOWN_REQUEST = UNKNOWN_OPERATION | {"validation_failed"}
"""A path of this version may be a note's path with an invalid id in the version before."""


def forget_unknown_requests(history: History) -> None:
    """Remove the requests that a gateway of the version before has not understood; they have no effect."""
    older = [each for each in history.disturbances if each.name in OLDER_GATEWAYS]

    def is_known(answer: Answer) -> bool:
        return answer.code not in UNKNOWN_REQUEST or not any(may_be_from(each, answer) for each in older)

    for write in history.writes:
        write.attempts = list(filter(is_known, write.attempts))
    history.writes = [write for write in history.writes if write.attempts]
    history.reads = [read for read in history.reads if is_known(read.answer)]
    history.looks = [look for look in history.looks if is_known(look.answer)]
    history.looks = [look for look in history.looks if is_known(look.answer)]
    for person in history.people:
        person.uses = [use for use in person.uses if is_known(use.answer)]


def may_be_from(disturbance: Disturbance, answer: Answer) -> bool:
    """Whether the gateway of the answer was of the version before."""
    is_target = disturbance.target in (f"gateway-{answer.gateway + 1}", "all")
    return is_target and disturbance.began < answer.answered and answer.asked < disturbance.ended
