"""As Kaggle's image has it: a secret by an HTTP request, every status as ConnectionError."""

import json
import os
import urllib.request

TIMEOUT_S = float(os.environ.get("STUB_TIMEOUT_S", "40"))


class CredentialError(Exception):
    """There is no token."""


class BackendError(Exception):
    """The service knows no such secret of this notebook."""


class UserSecretsClient:
    """A client of the service at KAGGLE_URL_BASE."""

    def __init__(self):
        if "KAGGLE_USER_SECRETS_TOKEN" not in os.environ:
            raise CredentialError("no KAGGLE_USER_SECRETS_TOKEN")
        self.token = os.environ["KAGGLE_USER_SECRETS_TOKEN"]

    def get_secret(self, label):
        url = f"{os.environ['KAGGLE_URL_BASE']}/requests/GetUserSecretByLabelRequest"
        body = json.dumps({"Label": label, "JWE": self.token}).encode()
        request = urllib.request.Request(url, body, {"Content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                said = json.loads(answer.read())
        except OSError as error:  # URLError, of which HTTPError is one, and TimeoutError
            raise ConnectionError("Connection error trying to communicate with service.") from error
        if not said.get("wasSuccessful"):
            raise BackendError(f"Unexpected response from the service. Response: {said}.")
        return said["result"]["secret"]
