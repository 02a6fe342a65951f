"""Training in several processes: sharded layers, and figures that all processes must share to decide alike."""
