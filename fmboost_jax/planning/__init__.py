"""Plans of runs on TPUs without TPUs: XLA's TPU compiler compiles the program of the run and estimates its cost."""
