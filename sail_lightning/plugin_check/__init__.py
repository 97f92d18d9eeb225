"""Named checks of whether a plugin does what its socket requires; they are in the package, so they need no checkout.

`sail-lightning plugins check` runs them for a user, and the tests run them for every registered plugin.
"""

from sail_lightning.plugin_check.check import Check, Fault, Subject
from sail_lightning.plugin_check.run import Result, check_plugin, checks_of, stages_of

__all__ = ["Check", "Fault", "Result", "Subject", "check_plugin", "checks_of", "stages_of"]
