"""Image quality metrics: fidelity, perceptual distance, Fréchet distance, CLIP score."""
