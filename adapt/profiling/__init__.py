"""The cost of a network on a machine: model cards, and measurements of the present processor."""
