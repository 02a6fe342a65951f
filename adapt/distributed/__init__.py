"""Training in several processes: layers split between them, and figures that all must share to decide alike."""
