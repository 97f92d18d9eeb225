"""Tables of variants: each idea switched on and off, over several seeds, at equal compute, with paired tests."""
