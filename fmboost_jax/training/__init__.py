"""Training: state, optimiser, EMA, checkpoints, loop and logs."""
