"""The numbers at the end of the names of exchanges and queues: `<prefix>.commands.v1.<number>`.

Each name ends with a number because every permission that RabbitMQ's users already have covers exactly these names
(docs/decisions/0031). Names of exchanges and of queues are separate in RabbitMQ, so only those of the same kind must
differ. They do, since N, the number of partitions, is at most 256:

| Exchange                 | Number       | Exists                                                      |
|--------------------------|--------------|-------------------------------------------------------------|
| routes to N partitions   | 1 to 256     | while the broker has N partitions                           |
| range that contains N    | 400 to 416   | since the first number in the range, forever                |
| former routes            | 500          | until the number is changed for the first time              |
| closed routes, of N      | 1001 to 1256 | while the number is being changed from N to another         |

| Queue                    | Number       | Exists                                                      |
|--------------------------|--------------|-------------------------------------------------------------|
| commands of a partition  | 0 to 255     | always                                                      |
| parking of a partition   | 1000 to 1255 | while the partition's queue is being declared anew          |
| lock                     | 2000         | while a process declares or changes the number              |
"""

RANGE_SIZE = 16
"""Numbers of partitions that share a range exchange."""
FORMER_ROUTES_NUMBER = 500
LOCK_NUMBER = 2000
_RANGES_OFFSET = 400
_CLOSED_OFFSET = 1000
_PARKING_OFFSET = 1000


def number_range(partitions: int) -> int:
    """Return the number of the exchange for the range that contains this number of partitions."""
    return _RANGES_OFFSET + partitions // RANGE_SIZE


def number_closed_routes(partitions: int) -> int:
    """Return the number of the exchange that replaces the routes to so many partitions while they are closed."""
    return _CLOSED_OFFSET + partitions


def number_parking(partition: int) -> int:
    """Return the number of a partition's parking queue."""
    return _PARKING_OFFSET + partition
