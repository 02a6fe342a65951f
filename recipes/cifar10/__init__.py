"""See `recipes.cifar10.__main__`."""
