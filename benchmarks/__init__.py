"""Speed and memory against a baseline in the style of the official code; imported as `sail_lightning.benchmarks`."""

if __name__ != "sail_lightning.benchmarks":
    # From the repository's root, `import benchmarks` would make a second copy whose classes are not the package's.
    raise ImportError("import sail_lightning.benchmarks, not benchmarks: the folder belongs to the package")
