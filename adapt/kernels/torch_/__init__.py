"""The passes in plain torch, for every device: the reference for the other back ends."""
