"""Settings: the ranges of arguments' values, the arguments of a class, and names of earlier versions."""
