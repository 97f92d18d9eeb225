"""A look at a data set: its faults, its statistics, its samples; and its conversion."""
