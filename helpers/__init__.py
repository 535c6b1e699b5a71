"""What the notebooks call: five rooms for the five stages, over rooms for what they share.

Importing it changes nothing of the process; `helpers.host.setup` and the commands ask for what they need.
"""

from helpers.core.moved import register

register()
