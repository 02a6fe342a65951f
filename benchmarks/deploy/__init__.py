"""What a trained network costs on a processor once it is exported: bytes and latency."""
