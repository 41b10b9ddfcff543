"""Devices: the mesh, the sharding rules, the start of many processes."""
