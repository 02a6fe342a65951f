"""What adaptive precision costs on the machine at hand: `python -m benchmarks` prints the table and writes its JSON."""
