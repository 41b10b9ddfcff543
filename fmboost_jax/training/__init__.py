"""What a training run keeps: state, optimiser, EMA, checkpoints and logs."""
