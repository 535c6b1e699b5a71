"""The permission to use an image, and whether it allows a public push to the Hub."""

from collections import Counter
from collections.abc import Collection, Iterable

from helpers.core.errors import RunError

MAY_BE_SHOWN = ("own work", "permission of the artist")
OF_ANOTHERS = "private study"


def permission_for(said: str, owners: Collection[str], account: str) -> str:
    """Return `said` as the permission for an owner's image, else "private study". Unknown accounts count as owners."""
    return said if not owners or account.lower() in ("", *owners) else OF_ANOTHERS


def require_shareable(permissions: Iterable[str]) -> None:
    """Raise RunError if an image's permission forbids a public dataset or model, or if there is no image."""
    counts = Counter(permissions)
    refused = {name: count for name, count in counts.items() if name not in MAY_BE_SHOWN}
    if refused or not counts:
        listed = ", ".join(f"{count} are for {name!r}" for name, count in refused.items())
        raise RunError(
            f"private is False, but of {counts.total()} images {listed or 'none is known'}: only "
            f"{' or '.join(map(repr, MAY_BE_SHOWN))} may be made public; leave private=True"
        )
