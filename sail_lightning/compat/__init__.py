"""Private names and undocumented conventions of libraries, one module per library; no other code uses them.

A library may change such names in any version. `tests/compat` tests each of them, so that a change is reported by name,
and the ranges of `pyproject.toml` end at the newest versions that were tested. Three libraries are known to few files
elsewhere: mmengine to `registry.py` and `conversion/mmengine_config/reading.py`, by public names; timm to
`plugins/timm_models.py`; xformers to `plugins/attention/xformers.py`.

The modules know nothing of the rest of the package but `errors`.
"""
