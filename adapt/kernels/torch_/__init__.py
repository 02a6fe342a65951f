"""The passes in plain torch, for every device: what the other back ends are held against."""
