"""See `recipes.quickstart.__main__`."""
