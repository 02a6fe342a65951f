"""The choice and naming of layers, and hooks on the modules that own them."""
