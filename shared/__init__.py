"""What gateway and worker must agree on: the wire, the tables, the topology."""
