"""What the gateway and the worker share: wire format, tables, topology, connections and settings."""

__version__ = "1.1.0"
