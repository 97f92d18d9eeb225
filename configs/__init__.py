"""Packaged configurations, found by name (`-c quickstart`); imported as `sail_lightning.configs`."""

if __name__ != "sail_lightning.configs":
    raise ImportError("import sail_lightning.configs, not configs: the folder belongs to the package")
