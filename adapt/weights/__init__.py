"""The float32 masters of the layers, and the rounded copies that the parameters show."""
