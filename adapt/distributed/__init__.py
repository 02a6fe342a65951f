"""Trainings of several processes: layers of which each holds a piece, and what all must know to decide alike."""
