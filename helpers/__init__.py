"""The code that the notebooks call: a package for each of the five stages, and packages that the stages share.

Importing it does not change the process; `core/process.py` prepares it, for `host/setup.py` and every command.
"""

from helpers.core.moved import register

register()
