"""See `recipes.mixed_precision.__main__`."""
