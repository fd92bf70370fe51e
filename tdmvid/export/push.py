"""Upload a checked bundle and its card to the Hugging Face hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..adapters.bundle import FACTS, check_card, read_facts
from ..config import short
from ..config.json_files import read_object
from ..data.reading import raised_by_library, reason

TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class HubTarget:
    """A model repository on the hub that a bundle is uploaded to."""

    name: str
    """owner/name."""
    public: bool = False
    """Whether everybody may read it."""

    @property
    def visibility(self) -> str:
        """Return what the hub calls it."""
        return "public" if self.public else "private"


def check_target(target: HubTarget) -> None:
    """Check that a bundle can be uploaded; called before it is written, which takes minutes.

    Args:
        target: The repository. It need not exist.

    Raises:
        ValueError: The name has no owner, there is no token, the hub refuses the token, or the
            repository exists with another visibility.
    """
    _check_name(target.name)
    if not get_token():
        raise ValueError(
            f"push={target.name!r} needs a token of the hub: create one with write access at"
            f" {TOKENS}, then run `hf auth login` or set HF_TOKEN"
        )
    api = HfApi()
    with _explained(target):
        token = api.whoami().get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise ValueError(
                f"push={target.name!r}: the token can only read: create one with write access at"
                f" {TOKENS}, then run `hf auth login` or set HF_TOKEN"
            )
        _check_visibility(api, target)


def upload(folder: Path, target: HubTarget) -> str:
    """Upload a bundle in one commit, and remove what an earlier upload alone had.

    Args:
        folder: A folder that `write_bundles` wrote. Other files in it are not uploaded.
        target: The repository. It is created if it does not exist.

    Returns:
        The address of the repository.

    Raises:
        ValueError: The bundle is incomplete, did not pass its check, or cannot be uploaded.
    """
    files = _checked_files(folder)
    api = HfApi()
    with _explained(target, folder):
        address = api.create_repo(target.name, private=not target.public, exist_ok=True)
        _check_visibility(api, target)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(path) for path in _outdated(api, target, files)),
            *(CommitOperationAdd(path, str(folder / path)) for path in files),
        ]
        api.create_commit(target.name, operations, commit_message="Upload a checked bundle")
    return str(address)


def _checked_files(folder: Path) -> list[str]:
    """Return the files of a bundle that passed its check."""
    facts = read_facts(folder)
    if "error" not in facts or "tolerance" not in facts:
        raise ValueError(f"{folder} is no checked bundle: write one with `tdmvid export`")
    errors = [facts["error"], *facts.get("errors", {}).values()]
    if not all(error <= facts["tolerance"] for error in errors):
        raise ValueError(
            f"{folder} differs from its student by {max(errors):.1e}, more than"
            f" tolerance={facts['tolerance']:.1e}: export it again with `tdmvid export`"
        )
    check_card(folder)
    files = sorted({*facts["files"], FACTS})
    if missing := [path for path in files if not (folder / path).is_file()]:
        raise ValueError(
            f"{folder} lacks {missing[0]!r}, which {FACTS} lists: export it again with"
            " `tdmvid export`"
        )
    return files


def _check_name(name: str) -> None:
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest):
        raise ValueError(
            f"push={short(name)} needs an owner: write OWNER/NAME, where OWNER is your account or"
            " an organization on the hub"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"push={short(name)} is no name on the hub: {reason(error)}") from None


def _check_visibility(api: HfApi, target: HubTarget) -> None:
    """Refuse a repository that exists and is public where private was asked for, or the reverse.

    The hub ignores the visibility of a request to create what exists.
    """
    try:
        private = bool(api.model_info(target.name).private)
    except RepositoryNotFoundError:
        return
    if private == target.public:
        exists = "private" if private else "public"
        remedy = "leave out --public" if private else "add --public to upload there"
        raise ValueError(
            f"push={target.name!r} exists and is {exists}: {remedy}, choose another name, or"
            f" change it at https://huggingface.co/{target.name}/settings"
        )


def _outdated(api: HfApi, target: HubTarget, files: list[str]) -> list[str]:
    """Return the files of an earlier upload that this one does not replace."""
    there = set(api.list_repo_files(target.name))
    if FACTS not in there:
        return []
    written = read_object(Path(api.hf_hub_download(target.name, FACTS))).get("files", [])
    return sorted(there & set(written) - set(files))


@contextmanager
def _explained(target: HubTarget, folder: Path | None = None) -> Iterator[None]:
    """Turn what the hub's client raises into one line; `folder` holds the bundle, if there is one.

    The client raises its own errors, those of its HTTP library, and those of the system.
    """
    try:
        yield
    except Exception as error:
        kept = ""
        if folder:
            private, quoted = "" if target.public else " --private", shlex.quote(str(folder))
            kept = f"; the bundle is in {folder}: `hf upload {target.name} {quoted} .{private}`"
        if isinstance(error, ValueError) and not raised_by_library(error):
            raise ValueError(f"{error}{kept}") from None
        raise ValueError(f"push={target.name!r}: {_cause(target, error)}{kept}") from error


def _cause(target: HubTarget, error: Exception) -> str:
    """Return why an upload failed, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    owner = target.name.partition("/")[0]
    if status == 401:
        return (
            "the hub does not accept the token (401): run `hf auth login` again, or set HF_TOKEN"
            f" to a valid one from {TOKENS}"
        )
    if status == 403:
        return (
            f"the token may not write to {owner!r} (403): use a token with write access to it from"
            f" {TOKENS}, or a name under your own account"
        )
    return f"the upload failed ({reason(error)}): check the network and try again"
