"""Teachers' features on disk: how they are stored, written once, and read in training."""
