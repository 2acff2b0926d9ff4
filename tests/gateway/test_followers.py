"""Hints that arrive close together, on the event loop of the service."""

import asyncio

import uvloop

from gateway.reads.followers import Follower, Group


def test_second_hint_in_the_same_moment_is_no_error_and_its_followers_are_woken() -> None:
    async def hear_twice() -> None:
        group = Group()
        follower = Follower(group)
        group.followers.add(follower)
        group.wake_soon()  # at once, for which uvloop gives a handle without a time
        group.wake_soon()
        await follower.wait(asyncio.get_running_loop().time() + 5)
        group.close()
        assert follower._woken.is_set()

    uvloop.run(hear_twice())
