"""RabbitMQ's definitions: Inkwell's users and their permissions, as definitions.sh prints them."""

import json
import os
import subprocess
from collections.abc import Mapping

from dev.backend import HINTS_VHOST, ROOT

ADMINISTRATOR = "administrator"
ANY_PREFIX = "[a-z][a-z0-9-]*"


def definitions(settings: Mapping[str, str]) -> str:
    """The definitions with the prefix and the passwords of these settings."""
    script = str(ROOT / "dev/definitions.sh")
    return subprocess.check_output(["sh", script], env={"PATH": os.environ["PATH"], **settings}, text=True)


def definitions_for_tests() -> str:
    """The definitions for queues of every prefix, with an administrator; each user's name is its password."""
    given = json.loads(
        definitions(
            {
                "INKWELL_QUEUE_PREFIX": ANY_PREFIX,
                "RABBITMQ_GATEWAY_PASSWORD": "inkwell_gateway",
                "RABBITMQ_WORKER_PASSWORD": "inkwell_worker",
            }
        )
    )
    given["users"].append({"name": ADMINISTRATOR, "password": ADMINISTRATOR, "tags": ADMINISTRATOR})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    given["permissions"] += [{"user": ADMINISTRATOR, "vhost": vhost, **everything} for vhost in ("/", HINTS_VHOST)]
    return json.dumps(given)
