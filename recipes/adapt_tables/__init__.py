"""See `recipes.adapt_tables.__main__`."""
