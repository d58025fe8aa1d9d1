"""Downloads from the Hugging Face Hub: of a model only what transformers reads, or one GGUF file.

All through huggingface_hub: its cache (HF_HOME, HF_HUB_CACHE), its login (HF_TOKEN, ``hf auth login``), its offline
switch (HF_HUB_OFFLINE) and its progress bars. Where the Hub cannot be reached, what the cache holds is used.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection
from glob import escape
from pathlib import Path

from kit.errors import KitError

MARGIN = 1_000_000_000  # bytes to spare beside a download: a disk filled to the brim stops more than this kit
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers reads beside config.json and weights. No pickles and no Python files: both can run any program.
_BESIDE = re.compile(
    r"(generation_config|tokenizer.*|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|model\.safetensors\.index\.json|.*\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
)
_ID = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)  # huggingface_hub's, without its 0.3 s of import
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# A repository's files -> those needed; KitError where they are not there.
Choice = Callable[[Collection[str]], list[str]]


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the Hub's syntax ``owner/name``. A relative path may have it too: look for that first."""
    return bool(_ID.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def fetch_config(repo: str) -> Path:
    """The path of ``repo``'s config.json, downloaded alone: a few kB that tell how large the model is.

    Raises KitError where it cannot be had.
    """
    return _fetch(f"--model {repo}", repo, lambda names: _config(repo, names)) / CONFIG


def fetch_model(repo: str) -> Path:
    """The snapshot folder of ``repo`` with its configuration, tokenizer and safetensors weights.

    Raises KitError where they cannot be had, where there are none, or where the disk is too small.
    """

    def choose(names: Collection[str]) -> list[str]:
        top = [name for name in names if "/" not in name]
        # Mistral's repositories hold the weights twice: consolidated*.safetensors is for its own library.
        weights = [n for n in top if n.endswith(".safetensors") and not n.startswith(("consolidated", "adapter_"))]
        if not weights:
            raise KitError(
                f"--model {repo}: no safetensors weights for transformers in this repository, and only those are read "
                "(pickled ones can run any program). Choose another model, or a conversion of this one to safetensors."
            )
        beside = [name for name in top if _BESIDE.fullmatch(name)]
        # Where one file holds them all, transformers takes it and leaves the shards.
        return [*_config(repo, names), *beside, *([WEIGHTS] if WEIGHTS in weights else weights)]

    return _fetch(f"--model {repo}", repo, choose)


def fetch_gguf(spec: str) -> Path:
    """The path of the one file that ``spec`` names, ``owner/name:file.gguf``.

    Raises KitError where it cannot be had, where it is one part of several, or where the disk is too small.
    """
    repo, _, file = spec.partition(":")
    if not file.endswith(".gguf"):
        raise KitError(
            f"--gguf {spec}: no such file here. Give a .gguf file's path, or owner/name:file.gguf for one on the Hub, "
            "such as Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf."
        )
    if _SPLIT.search(file):
        raise KitError(
            f"--gguf {spec}: one part of a GGUF that is split into several files. Choose a single-file one, or merge "
            "the parts with `llama-gguf-split --merge` and give the merged file's path."
        )

    def choose(names: Collection[str]) -> list[str]:
        if file in names:
            return [file]
        others = sorted(name for name in names if name.endswith(".gguf") and not _SPLIT.search(name))
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise KitError(
            f"--gguf {spec}: no such file in that repository. "
            + (f"Choose one of its own: {', '.join(others[:8])}{more}." if others else "It has no single-file GGUF.")
        )

    return _fetch(f"--gguf {spec}", repo, choose) / file


def _config(repo: str, names: Collection[str]) -> list[str]:
    if CONFIG not in names:
        raise KitError(
            f"--model {repo}: no config.json in this repository, so transformers cannot load it. Choose another one."
        )
    return [CONFIG]


def _fetch(given: str, repo: str, choose: Choice) -> Path:
    """The snapshot folder of ``repo``, complete as far as ``choose`` asks; ``given`` is the option as it was typed."""
    if not is_hub_id(repo):
        raise KitError(f"{given}: {repo!r} is neither a path here nor a model's name on the Hub. Give owner/name.")

    from huggingface_hub import HfApi, constants, get_token, snapshot_download
    from huggingface_hub.errors import HTTPError  # that of httpx or httpx2, whichever it is built on
    from huggingface_hub.file_download import repo_folder_name

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):  # the HTTP library would show it in its complaint
        raise KitError(
            f"{given}: the Hub's token (HF_TOKEN, or that of `hf auth login`) holds a character that none has. Copy it "
            "again."
        )
    try:
        found = HfApi().model_info(repo, files_metadata=True)
    except (HTTPError, OSError, ValueError) as error:  # ValueError: some other server's answer
        folder = _snapshot(repo)
        if folder is not None and _complete(folder, repo, choose):
            return folder
        raise _refusal(given, repo, error) from None

    files = {file.rfilename: file for file in found.siblings or []}
    wanted = choose(files)
    folder = _snapshot(repo, found.sha)
    absent = [name for name in wanted if folder is None or not (folder / name).is_file()]
    if folder is not None and not absent:
        return folder
    cache = Path(constants.HF_HUB_CACHE).absolute()
    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    hashes = {name: file.lfs.sha256 if file.lfs else str(file.blob_id) for name, file in files.items()}
    # What a new commit left as it was is there already, under its hash.
    absent = [name for name in absent if not (blobs / hashes[name]).is_file()]
    try:
        if absent:
            if found.gated:
                HfApi().auth_check(repo)  # its list of files was public
            size = sum(files[name].size or 0 for name in absent)
            _check_disk(given, size, cache)
            what = absent[0] if len(absent) == 1 else f"{len(absent)} files"
            print(f"Downloading {what} of {repo}: {_gigabytes(size)} to {cache}", flush=True)
        folder = Path(snapshot_download(repo, allow_patterns=[escape(name) for name in wanted]))
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's
        raise _refusal(given, repo, error) from None
    if not all((folder / name).is_file() for name in wanted):  # without a connection it returns what there is
        raise _refusal(given, repo, ConnectionError("connection lost"))
    return folder


def _snapshot(repo: str, commit: str | None = None) -> Path | None:
    """The cache's folder of ``commit``, or of the last one seen on the main branch; it may hold anything."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # no pattern: no file is asked for, so that none can be missing
        return Path(snapshot_download(repo, revision=commit, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None


def _complete(folder: Path, repo: str, choose: Choice) -> bool:
    """Whether a cached snapshot holds all that ``choose`` asks for, as far as can be told without the Hub."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        names = {file.path for file in get_cached_repo_tree(repo)}
    except CachedRepoTreeNotFoundError:  # other programs download file by file and leave no list
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if INDEX in names:
            names |= set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    try:
        return all((folder / name).is_file() for name in choose(names))
    except KitError:
        return False


def _check_disk(given: str, size: int, cache: Path) -> None:
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if free < size + MARGIN:
        raise KitError(
            f"{given}: the download needs {_gigabytes(size)} and {_gigabytes(MARGIN)} to spare, and the disk of "
            f"{cache} has {_gigabytes(free)} free. Free some space, or set HF_HOME to a folder on another disk."
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else "less than 0.01 GB"


def _refusal(given: str, repo: str, error: Exception) -> KitError:
    """The message for ``error``, without the addresses and headers that huggingface_hub adds to its own."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{repo}"
    lacks = f"the cache {constants.HF_HUB_CACHE} does not hold all that is needed"
    status = getattr(getattr(error.__cause__ or error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        text = f"its authors ask for their licence to be accepted first. Accept it on {page}, then {log_in}."
    elif isinstance(error, RepositoryNotFoundError):
        text = f"not on the Hub, or private (it answers both alike). Look at {page}; for a private one, {log_in}."
    elif status == 401:
        text = f"the Hub refuses your token. To replace it, {log_in}; public models need none (`hf auth logout`)."
    elif isinstance(error, OfflineModeIsEnabled):
        text = f"the offline switch HF_HUB_OFFLINE is set, and {lacks}. Unset it for the first run with a model."
    elif isinstance(error, OSError) and error.errno:
        text = (
            f"cannot write to the cache {constants.HF_HUB_CACHE} ({error.strerror}). Free some space, or set HF_HOME "
            "to another folder."
        )
    else:
        reason = f"HTTP {status}" if status else str(error.__cause__ or error).strip().partition("\n")[0]
        xet = ", with HF_HUB_DISABLE_XET=1 set if it stops once more" if isinstance(error, RuntimeError) else ""
        text = (
            f"the download from {constants.ENDPOINT} failed ({reason or type(error).__name__}), and {lacks}. Check the "
            f"network and give the same command again{xet}: files that arrived whole are kept."
        )
    return KitError(f"{given}: {text}")
