"""The method: paths, couplings, objectives and solvers, without any network."""
