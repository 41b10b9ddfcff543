"""Inference: a trained flow with its first stage, its bundle, its programs, its folders of results."""
