"""Folders in an image folder that are no classes: hidden ones, those that macOS packs along, and empty ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ARCHIVED = "__MACOSX"  # what macOS puts beside the files of an archive

OTHER_PICTURES = (".webp", ".tif", ".tiff", ".gif", ".bmp", ".jfif", ".jp2", ".avif", ".heic", ".ppm")


def is_no_class(name: str) -> bool:
    """Whether a file or folder of this name was put there by a program for itself, as notebooks' checkpoints are."""
    return name.startswith(".") or name == ARCHIVED


def leave_out(images: Any, numbered: bool, notes: list[str]) -> None:
    """Take images in folders that are no classes out of timm's ``images``, and name the folders in ``notes``.

    Args:
        images: timm's data set of a folder.
        numbered: whether a class map has numbered the classes; else the classes that are left are numbered anew.
        notes: gets one line for hidden and one for empty folders.
    """
    reader, root = images.reader, Path(images.reader.root)
    junk: set[str] = set()
    kept: list[tuple[str, int]] = []
    for file, label in reader.samples:
        parts = Path(file).relative_to(root).parts
        found = next((part for part in parts if is_no_class(part)), None)
        if found is None:
            kept.append((file, label))
        elif found != parts[-1]:
            junk.add(found)
    left_out = len(reader.samples) - len(kept)
    if left_out:
        what = ", ".join(map(repr, sorted(junk))) or "files whose names begin with a dot"
        notes.append(f"{left_out} image files are no class's and are left out: {what}")
        reader.samples = kept
        if not numbered:
            _number_anew(reader)
    others, occupied = _others(root)
    if others:
        notes.append(
            f"{len(others)} images are no .png, .jpg or .jpeg, which timm reads, and are left out, such as "
            f"{others[0]!r}: convert them first"
        )
    folders = (entry.name for entry in os.scandir(root) if entry.is_dir() and not is_no_class(entry.name))
    empty = sorted(name for name in folders if name not in occupied)
    if empty:
        notes.append(f"{len(empty)} folders are empty and count as no class: {', '.join(map(repr, empty[:3]))}")


def _others(root: Path) -> tuple[list[str], set[str]]:
    """Pictures below ``root`` that may be a class's and are of other kinds than timm reads, in the order of their
    names, and the names of the folders in ``root`` that hold any file. One walk: a data set has a million files."""
    others: list[str] = []
    occupied: set[str] = set()
    for folder, _, files in os.walk(root, followlinks=True):
        parts = Path(folder).relative_to(root).parts
        if files and parts:
            occupied.add(parts[0])
        if not any(map(is_no_class, parts)):
            found = (file for file in files if file.lower().endswith(OTHER_PICTURES) and not is_no_class(file))
            others += [str(Path(*parts, file)) for file in found]
    return sorted(others), occupied


def _number_anew(reader: Any) -> None:
    """Number the classes of a timm reader from 0 again, in the same order, without those that have no image."""
    used = {label for _, label in reader.samples}
    names = [name for name, label in sorted(reader.class_to_idx.items(), key=lambda item: item[1]) if label in used]
    places = {reader.class_to_idx[name]: number for number, name in enumerate(names)}
    reader.samples = [(file, places[label]) for file, label in reader.samples]
    reader.class_to_idx = {name: number for number, name in enumerate(names)}
