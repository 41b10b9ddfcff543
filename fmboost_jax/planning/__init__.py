"""Plans of runs on TPUs that are not there: what XLA's TPU compiler says of the very program that would run."""
