"""As google.colab.userdata, with its three exceptions."""

import json
import os

from google.colab import ask


class NotebookAccessError(Exception):
    """The person has not opened the secret to this notebook."""


class SecretNotFoundError(Exception):
    """There is none of that name."""


class TimeoutException(Exception):
    """No browser answered."""


def get(key):
    ask(f"secret {key}")
    secrets = json.loads(os.environ.get("STUB_SECRETS", "null"))
    if secrets is None:
        raise TimeoutException(f"Requesting secret {key} timed out.")
    if key not in secrets:
        raise SecretNotFoundError(f"Secret {key} does not exist.")
    if secrets[key] is None:
        raise NotebookAccessError(f"Notebook does not have access to secret {key}")
    return secrets[key]
