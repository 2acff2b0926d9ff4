"""Writes Compose's alert rules as the Prometheus Operator's object: `make generate`."""

from textwrap import indent

from dev.backend import ROOT

RULES = ROOT / "observability/alerts.yml"
OBJECT = ROOT / "k8s/components/monitoring/alerts.yaml"
HEAD = """\
# Made of observability/alerts.yml by `make generate`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: { name: inkwell }
spec:
"""


def rule_object() -> str:
    """The rules, comments included, in a PrometheusRule."""
    return HEAD + indent(RULES.read_text(), "  ")


if __name__ == "__main__":
    OBJECT.write_text(rule_object())
