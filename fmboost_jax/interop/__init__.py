"""Weights of other projects in and out: the PyTorch reference, CompVis, diffusers, TAESD."""
