"""See `recipes.char_gpt.__main__`."""
