"""Which files on storages of the network are meant: files, folders and patterns."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError
from omgsr_cli.files.addresses import Address, shown
from omgsr_cli.files.folders import is_picture, natural_key, told_unread, unread_suffix
from omgsr_cli.files.found import NO_PICTURES, Found, FoundInput, LeftOut, problem, unread_note
from omgsr_cli.files.remote_folders import expand, list_files
from omgsr_cli.files.storage import look_at


@dataclass(frozen=True)
class RemoteSearch:
    """Finds pictures at addresses.

    Attributes:
        recursive: whether folders below a folder are searched too.
        output_folder: where results go; it is not searched if it is met below a folder.
    """

    recursive: bool
    output_folder: Address | None = None

    def find(self, address: Address, below: Path, name: str) -> Iterator[Found]:
        """What lies at an address: a file, the pictures of a folder, or all that a pattern matches.

        Args:
            address: that was named.
            below: the path that a file keeps below an `-o FOLDER`.
            name: what to call it in messages.
        """
        try:
            if glob.has_magic(address.place):
                yield from self._matches(address)
            elif (entry := look_at(address)) is None:
                yield problem(name, "there is no such file")
            elif entry.is_folder:
                yield from self._folder(address, name)
            else:
                yield FoundInput(address, below)
        except FileError as error:
            yield error

    def _folder(self, folder: Address, name: str) -> Iterator[Found]:
        unread, count = Counter[str](), 0
        asked_for = self.output_folder is not None and folder.is_relative_to(self.output_folder)
        skipped = None if asked_for else self.output_folder
        below = LeftOut()
        for address in list_files(folder, recursive=self.recursive, skipped=skipped, on_folder=below.add):
            path = Path(address.relative_to(folder))
            if is_picture(path):
                count += 1
                yield FoundInput(address, path, folder, searched=True)
            elif suffix := unread_suffix(path):
                unread[suffix] += 1
        if count:
            yield from unread_note(folder, unread)
            # Whether these hold pictures, only more requests would tell.
            yield from below.note()
        elif (told := told_unread(unread)) is not None:
            yield problem(name, f"{NO_PICTURES} that can be read, but {told[0]}", told[1])
        else:
            hint = None if self.recursive else "sub-folders are searched with --recursive"
            yield problem(name, NO_PICTURES, hint)

    def _matches(self, pattern: Address) -> Iterator[Found]:
        root = pattern
        while glob.has_magic(root.place):
            root = root.parent
        pictures = [one for one in expand(pattern) if is_picture(Path(one.name))]
        for address in sorted(pictures, key=lambda one: natural_key(Path(one.place))):
            yield FoundInput(address, Path(address.relative_to(root)), searched=True)
        if not pictures:
            yield problem(shown(pattern), "no picture matches")
