"""The parts that every run needs: hooks on optimizer and modules, views, steps, losses, persistence, a registry."""
