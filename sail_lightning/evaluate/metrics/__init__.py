"""The built-in metrics, one definition each. Import their classes from `sail_lightning.evaluate`."""
