"""Files of class names, and what they make of the numbers of a data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tokensieve.data.classes import ClassNames, read_classes
from tokensieve.errors import TokensieveError


def test_a_line_is_a_name_or_a_folder_and_a_name(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\nn02\tbig dog \ngolf ball\n\n", encoding="utf-8-sig")
    classes = read_classes(file)
    assert classes == ClassNames(str(file), ("cat", "big dog", "golf ball"), ("cat", "n02", "golf ball"))
    assert classes.notes() == []


def test_the_digest_is_of_names_folders_and_order() -> None:
    found = {
        ClassNames("f", names, folders).digest
        for names, folders in (
            (("a", "b"), ("a", "b")),
            (("b", "a"), ("a", "b")),
            (("b", "a"), ("b", "a")),
            (("a", "b"), ("b", "a")),
            (("a", "b", "c"), ("a", "b", "c")),
        )
    }
    assert len(found) == 5
    assert ClassNames("f", ("a", "b"), ("a", "b")).digest == ClassNames("g", ("a", "b"), ("a", "b")).digest


def test_folders_are_numbered_as_the_lines_are() -> None:
    classes = ClassNames("f", ("dog", "cat", "cow"), ("n3", "n1", "n2"))
    reader = SimpleNamespace(class_to_idx={"n1": 0, "n3": 1}, samples=[("x", 0), ("y", 1), ("z", 0)])
    notes: list[str] = []
    classes.number(reader, "images", notes)
    assert reader.samples == [("x", 1), ("y", 0), ("z", 1)]
    assert reader.class_to_idx == {"n3": 0, "n1": 1, "n2": 2}
    assert notes == ["1 classes of f have no folder of images, such as 'n2'"]
    reader = SimpleNamespace(class_to_idx={"n1": 0, "N2": 1}, samples=[("x", 0)])
    with pytest.raises(TokensieveError, match=r"1 of 2 folders in 'images' .* such as 'N2', did you mean 'n2'"):
        classes.number(reader, "images", notes)


def test_a_data_set_that_numbers_its_classes_is_held_to_the_lines() -> None:
    classes = ClassNames("f", ("dog", "cat"), ("n1", "n2"))
    for fits in ({"n1": 0, "n2": 1}, {"tench": 0, "n2": 1}, None, {}):
        classes.check(fits, "hfds/x")
    with pytest.raises(TokensieveError, match="has 3 classes and the class file 'f' 2 lines"):
        classes.check({"n1": 0, "n2": 1, "n3": 2}, "hfds/x")
    with pytest.raises(TokensieveError, match="line 1 of the class file 'f' is 'n1', which is class 1"):
        classes.check({"n2": 0, "n1": 1}, "hfds/x")
