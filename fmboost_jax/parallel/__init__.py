"""Devices: the mesh, sharding rules, batching, and start-up of many processes."""
