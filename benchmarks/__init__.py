"""What adaptive precision costs on this machine: `python -m benchmarks` prints a table and writes it as JSON."""
