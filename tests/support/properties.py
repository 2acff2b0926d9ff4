"""How Hypothesis tests a property on real servers."""

import os

from hypothesis import HealthCheck, settings

# Each example empties the one database itself, and a busy machine must not fail the test.
SLOW_ON_PURPOSE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
on_real_servers = settings(
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "25")), deadline=None, suppress_health_check=SLOW_ON_PURPOSE
)
"""Decorates a test; `make fuzz` tries more examples."""
