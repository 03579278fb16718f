"""The program that keeps what a client built: ``python -m lfm_manager.environments.adopt --key KEY --tarball FILE ...``.

The tarball was made and tried by the very same build program on the client's machine.  Here its digest and its
description are checked, and a copy goes into the store: later sessions find it, from whatever machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from lfm_manager.environments.archive import sha256
from lfm_manager.environments.build import failure, tidy, write_result
from lfm_manager.environments.problems import BuildFailed, from_os_error
from lfm_manager.environments.store import Built, Store


def adopt(key: str, tarball: Path, description: bytes, store: Store) -> Built:
    """The environment, in the store from now on; ``tarball`` stays.  BuildFailed if it is not what it should be."""
    try:
        said = Built.from_dict(json.loads(description))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildFailed(f"the client describes what it built in a way that is not understood: {error}") from error
    try:
        if said.key != key or said.bytes != tarball.stat().st_size or said.digest != sha256(tarball):
            raise BuildFailed("what the client built is not what it says")
        with store.building(key):
            if found := store.find(key):
                return found
            work = store.workplace(key)
            try:
                copy = work / "environment.tar.zst"
                try:
                    os.link(tarball, copy)
                except OSError:
                    shutil.copyfile(tarball, copy)
                return store.publish(copy, replace(said, path=copy))
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise from_os_error(error) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lfm_manager.environments.adopt", description=__doc__)
    parser.add_argument("--key", required=True)
    for name in ("tarball", "description", "store", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        store = Store(options.store.absolute())
        answer = adopt(options.key, options.tarball, options.description.read_bytes(), store).to_dict()
        tidy(store)
    except Exception as error:  # whatever it is: the manager is told
        answer = failure(error)
    write_result(options.result, answer)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    raise SystemExit(main())
