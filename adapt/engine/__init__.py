"""What every run needs: hooks on optimizer and modules, views, steps, losses, persistence, who is attached."""
