"""The method itself: paths, couplings, losses and solvers; nothing here knows a network."""
