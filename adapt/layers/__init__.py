"""Which parameters are layers, and under what names; and hooks on the modules that own them."""
