"""What the notebooks call: a room for each of the five stages, and rooms for what they share.

Importing it does not change the process; `core/process.py` prepares it, for `host/setup.py` and every command.
"""

from helpers.core.moved import register

register()
