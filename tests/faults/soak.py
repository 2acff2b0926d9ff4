"""Steady load without faults, while the services' memory, files, tasks and sessions are sampled.

`python -m tests.faults.soak --minutes 30` judges whether they stay the same: none may grow once the caches are full.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from statistics import mean, median
from typing import Any

import aiohttp
import asyncpg
import matplotlib as mpl
import psutil
import structlog
import uvloop

from bench.plots import figure
from gateway.auth.access_tokens import AccessTokens
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from tests.faults.cluster import Cluster, Service, settings
from tests.faults.report import PAGE, write
from tests.faults.run import Verdict, run
from tests.support.accounts import bearer

SECTION = "soak"
FOLDER = PAGE.parent / "reliability"
SAMPLE_SECONDS, BROKER_SECONDS = 5.0, 30.0
GROWTH_MIB = 2.0
"""Memory may grow by this much in the judged minutes: Python's allocator returns it in pieces."""
NOISE = 3.0
"""Growth of a count within so many standard errors of its fit is noise."""
FIRST_JUDGED = 1 / 3
"""The share of the run in which everything warms up."""
KNOWN_CALLERS = 10_000
"""As many callers as a gateway remembers."""
PAGE_LIMIT_BYTES = 0.98
FILLING_AT_ONCE = 16
USERS = """
insert into users (name, folded_name) select 'soak ' || n, 'soak ' || n from generate_series(1, $1) as n returning id
"""
SESSIONS = "select count(*) from pg_stat_activity where usename in ('inkwell_gateway', 'inkwell_worker')"
OBJECTS = (
    "{length(rabbit_channel:list()), length(rabbit_networking:connections()),"
    ' length(rabbit_amqqueue:consumers_all(<<"/">>))}.'
)
METRIC = re.compile(r"^(\w+)(?:{[^}]*})? ([0-9.e+-]+)$", re.MULTILINE)
PANELS = {
    "MiB": "resident memory, MiB",
    "files": "open files",
    "tasks": "tasks",
    "threads": "threads",
    "sessions": "sessions of Postgres",
    "broker": "objects of RabbitMQ",
}
COLOURS = ("#1f4e9c", "#3aa6a0", "#c44536", "#d9a441", "#7b3f9d")

log = structlog.get_logger()
