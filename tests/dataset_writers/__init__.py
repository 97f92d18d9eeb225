"""Writes small data sets in the exact format of the published ones, below a folder that `$SAIL_DATA` may name.

One module per set, with `write(root)`. Images are drawn; what they show is known exactly.
"""
