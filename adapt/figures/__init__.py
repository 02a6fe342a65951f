"""Draw a trace as plain Figure objects, without pyplot, windows, or changes to global settings."""

from adapt.figures.canvas import CARD, PAGE, Canvas, pixels, short_names
from adapt.figures.heatmaps import channel_heatmap, word_length_heatmap
from adapt.figures.timelines import timeline

__all__ = ["CARD", "PAGE", "Canvas", "channel_heatmap", "pixels", "short_names", "timeline", "word_length_heatmap"]
