"""The float32 masters of the layers, the rounded copies that the parameters show, and the update that moves them."""
