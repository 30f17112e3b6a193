"""Find the best LeViT-like vision transformer for a data set and a device."""

__version__ = "0.1.0"
