"""Accuracy against cost: filter multipliers and precisions of a ResNet under AQT."""
