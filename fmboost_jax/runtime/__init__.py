"""The machine: compiled programs, memory, clocks, traces."""
