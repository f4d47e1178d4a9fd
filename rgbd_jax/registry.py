"""Trained networks by name: files beside a registry, or fetched once and cached.

`registry.json` has the entries, name -> fields of `Entry`. The file that the environment variable RGBD_REGISTRY names
adds entries of one's own, with the paths of its files relative to it.
"""

import dataclasses
import difflib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pooch

from rgbd_jax.regular_files import read_file
from rgbd_jax.storage import as_path

REGISTRY_VARIABLE = "RGBD_REGISTRY"
_PACKAGED = Path(__file__).with_name("inference") / "registry.json"
_LARGEST = 1 << 20  # bytes of a registry
_URL = re.compile(r"(?P<url>https?://[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?")

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered network.

    Attributes:
        about: what it recognises, in a few words.
        accuracy: its accuracy, on which clips, and who measured it.
        file: path of the file, relative to the registry; or
        url: where it is fetched from, with
        sha256: the checksum of the file, in hexadecimal; or
        page: the web page that it is downloaded from by hand.
        config: the config of a file that does not record one ("nvgesture:depth").
    """

    about: str
    accuracy: str = ""
    file: str = ""
    url: str = ""
    sha256: str = ""
    page: str = ""
    config: str = ""


class Source(NamedTuple):
    """Where the weights of a network lie on this machine, and the config to read them with, if one is known."""

    path: Path
    config: str = ""


def entries() -> dict[str, Entry]:
    """Returns the registered networks by name.

    Raises:
        ValueError: a registry cannot be read; names it.
    """
    files = [_PACKAGED, *([Path(own)] if (own := os.environ.get(REGISTRY_VARIABLE)) else [])]
    return {name: entry for file in files for name, entry in _read(file).items()}


def resolve(source: str | Path) -> Source:
    """Returns the weights that a path, a registered name or a URL ("https://...#sha256=...") names, fetched if need be.

    Raises:
        FileNotFoundError: there is neither such a path nor such a name.
        ValueError: the file cannot be fetched without a browser, has another checksum, or a URL has none.
        OSError: the file cannot be fetched.
    """
    if url := _URL.fullmatch(str(source)):
        if not url["sha256"]:
            raise ValueError(f"{source}: expected a checksum of the file after the URL: {source}#sha256=...")
        return Source(_fetch(url["url"], url["sha256"].lower()))
    path = as_path(source)
    if path.exists():
        return Source(path)
    known = entries()
    if (entry := known.get(str(source))) is None:
        close = difflib.get_close_matches(str(source), known, 3) or list(known)
        raise FileNotFoundError(f"{source}: no such path, and no registered network; such as {', '.join(close)}")
    if entry.page:
        use = f"give the path of the file, where a config is asked for with --config {entry.config}"
        raise ValueError(f"{source} cannot be fetched without a browser: download it from {entry.page}, then {use}")
    return Source(_fetch(entry.url, entry.sha256) if entry.url else Path(entry.file), entry.config)


def _fetch(url: str, sha256: str) -> Path:
    log.info("fetching %s", url)
    pooch.get_logger().setLevel(logging.ERROR)
    try:
        name = Path(url.split("?")[0]).name
        return Path(pooch.retrieve(url, f"sha256:{sha256}", f"{sha256[:8]}-{name}", pooch.os_cache("rgbd_jax")))
    except ValueError as error:  # another checksum; the file is deleted
        raise ValueError(f"{url}: the file is not the one that was registered: {error}") from error


def _read(file: Path) -> Mapping[str, Entry]:
    try:
        content = read_file(file, _LARGEST, lambda path, problem: ValueError(problem))
        known = {name: Entry(**fields) for name, fields in json.loads(content).items()}
        for name, entry in known.items():
            if not all(isinstance(value, str) for value in vars(entry).values()):
                raise ValueError(f"{name}: expected a text in each field")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no registry of networks: {error}") from error
    for name, entry in known.items():
        if sum(map(bool, (entry.file, entry.url, entry.page))) != 1 or bool(entry.url) != bool(entry.sha256):
            raise ValueError(f"{file}: {name}: expected a file, or a url with its sha256, or a page")
    return {
        name: dataclasses.replace(entry, file=str(file.parent / entry.file)) if entry.file else entry
        for name, entry in known.items()
    }
