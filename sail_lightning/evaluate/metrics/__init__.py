"""The built-in metrics, one definition each. Their classes are taken from `sail_lightning.evaluate`."""
