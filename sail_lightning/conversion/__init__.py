"""Official weights to and from ours, and official configs to ours; `weights.reading` reads the files."""
