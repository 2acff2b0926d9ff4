"""What the gateway and the worker share: wire format, tables, topology, connections and settings."""
