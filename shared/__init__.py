"""What gateway and worker must agree on: the wire, the tables, the topology."""

__version__ = "1.0.0"
