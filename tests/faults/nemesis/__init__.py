"""Injects faults into a cluster: the engine, and one module for each kind of thing that fails."""

from tests.faults.nemesis.catalogue import FAULTS, can_be_injected
from tests.faults.nemesis.engine import LONG, RECOVERY_LIMIT_SECONDS, SHORT, Fault, Nemesis

__all__ = ["FAULTS", "LONG", "RECOVERY_LIMIT_SECONDS", "SHORT", "Fault", "Nemesis", "can_be_injected"]
