"""The numbers at the end of the names of exchanges and queues."""

from shared.name_numbers import LOCK_NUMBER
from shared.settings import MAX_PARTITIONS
from shared.topology import Topology


def test_no_two_exchanges_have_the_same_name() -> None:
    topologies = [Topology("inkwell", number) for number in range(1, MAX_PARTITIONS + 1)]
    per_number = [name for each in topologies for name in (each.routes_exchange, each.closed_routes_exchange)]
    shared = {topologies[0].commands_exchange, topologies[0].former_routes_exchange}
    ranges = {each.range_exchange for each in topologies}

    assert len({*per_number, *shared, *ranges}) == len(per_number) + len(shared) + len(ranges)


def test_no_two_queues_have_the_same_name() -> None:
    topology = Topology("inkwell", MAX_PARTITIONS)
    commands = [topology.command_queue(partition) for partition in range(MAX_PARTITIONS)]
    parking = [topology.parking_queue(partition) for partition in range(MAX_PARTITIONS)]

    assert len({*commands, *parking, topology.command_queue(LOCK_NUMBER)}) == 2 * MAX_PARTITIONS + 1


def test_names_stay_those_that_other_versions_use() -> None:
    topology = Topology("inkwell", 20)

    assert topology.range_exchange == "inkwell.commands.v1.401"
    assert topology.former_routes_exchange == "inkwell.commands.v1.500"
    assert topology.closed_routes_exchange == "inkwell.commands.v1.1020"
    assert topology.parking_queue(3) == "inkwell.commands.v1.1003"
