"""Every model name that timm lists in these files, and every class of transformers that is given images, is exact at
no-op and really reduced, or refused with a reason; and it is known which of the classes attend over the whole image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import transformers

from tests.helpers import walk, walk_towers
from tests.helpers.walk_attends import STATED, Call, kind_of
from tests.helpers.walk_record import counted, judged

DOZEN = {
    "vit_tiny_patch16_224": "exact",
    "vit_small_patch14_reg4_dinov2": "exact",
    "vit_small_patch16_18x2_224": "exact",
    "vit_base_patch16_siglip_224": "exact",
    "vit_base_patch16_xp_224": "exact",
    "vit_dlittle_patch16_reg1_gap_256": "exact",
    "vit_medium_patch16_reg4_gap_256": "exact",
    "aimv2_large_patch14_224": "exact",
    "beit3_base_patch16_224": "exact",
    "eva02_tiny_patch14_224": "exact",
    "vit_small_patch16_dinov3": "exact",
    "vit_pe_core_tiny_patch16_384": "exact",
    "samvit_base_patch16": "exact",
    "cait_xxs24_224": "refused",
}
CLASSES = {
    "clip/CLIPVisionModel": ("exact", "global"),
    "qwen2_5_vl/Qwen2_5_VisionTransformerPretrainedModel": ("exact", "windows"),
    "qwen3_vl/Qwen3VLVisionModel": ("exact", "global"),
    "resnet/ResNetModel": ("refused", "other"),
    "segformer/SegformerModel": ("refused", "other"),
    "siglip/SiglipVisionModel": ("exact", "global"),
    "vit_mae/ViTMAEModel": ("exact", "global"),
    "vivit/VivitModel": ("exact", "global"),
    "x_clip/XCLIPVisionModel": ("refused", "global"),
}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_names(name: str) -> None:
    found = walk.judge(name)
    assert found["status"] == DOZEN[name], found["reason"]
    assert bool(found["reason"]) == (found["status"] == "refused")


def test_the_recorded_walk_names_every_model() -> None:
    found = recorded("families.json")
    if found["timm"] != timm.__version__:
        pytest.skip(f"docs/families.json was walked with timm {found['timm']}, installed is {timm.__version__}")
    assert sorted(found["models"]) == walk.names()
    assert set(counted(found)) <= {"exact", "refused"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_few_classes(name: str) -> None:
    found = walk_towers.walk(name.partition("/")[0])["models"][name]
    assert (found["status"], found["attends"]) == CLASSES[name], found["reason"]
    assert bool(found["family"]) == (found["status"] == "exact")
    assert found["reason"] or found["status"] == "exact"


def test_the_recorded_walk_says_of_every_class_how_it_attends() -> None:
    found = recorded("towers.json")
    models = found["models"]
    assert set(counted(found)) <= {"exact", "refused", "not built"}
    assert all(one["reason"] for one in models.values() if one["status"] != "exact")
    for how, share in found["attending"].items():
        these = [one["status"] for one in models.values() if one["attends"] == how]
        assert share == {"exact": these.count("exact"), "classes": len(these)}
    assert sum(share["classes"] for share in found["attending"].values()) == len(models)


def test_classes_that_are_not_built_state_how_they_attend() -> None:
    models = recorded("towers.json")["models"]
    assert not set(STATED) - set(models)
    assert not {name for name, one in models.items() if one["status"] == "not built"} - set(STATED)


@pytest.mark.parametrize("name", [name for name in STATED if name.partition("/")[0] not in walk_towers.NOT_BUILT])
def test_what_is_stated_of_a_class_no_run_shows(name: str) -> None:
    kind = dict(walk_towers.classes(name.partition("/")[0]))[name]
    model = walk_towers.built(kind)
    assert walk_towers.attends(model, walk_towers.example(model)) != STATED[name][0]


def test_blocks_that_reach_an_image_at_one_resolution_attend_globally() -> None:
    whole, window, joined = [Call(6, 65, 65)], [Call(24, 16, 16)], [Call(6, 16, 16)]
    assert kind_of([whole, whole], patches=64) == "global"
    assert kind_of([window, whole], patches=64) == "windows"
    assert kind_of([[Call(6, 64, 16)], [Call(6, 64, 64)]], patches=64) == "windows"  # by a mask
    assert kind_of([window, window], patches=64) == "other"
    assert kind_of([whole, joined], patches=64) == "other"


def test_a_name_that_breaks_does_not_end_the_walk() -> None:
    def broken() -> dict[str, str]:
        raise OSError("no disk")

    models = judged([("one", broken), ("two", lambda: {"status": "exact", "reason": ""})])
    assert models["one"] == {"status": "FAILED", "reason": "OSError: no disk"}
    assert counted({"models": models}) == {"FAILED": 1, "exact": 1}


@pytest.mark.slow
def test_every_name() -> None:
    found = walk.walk(walk.names())
    failed = {name: one["reason"] for name, one in found["models"].items() if one["status"] not in ("exact", "refused")}
    assert not failed
    assert all(one["reason"] for one in found["models"].values() if one["status"] == "refused")
    assert counted(found)["exact"] > 315


@pytest.mark.slow
def test_every_class() -> None:
    found, before = walk_towers.walk(), recorded("towers.json")
    assert not {name: one["reason"] for name, one in found["models"].items() if one["status"] == "FAILED"}
    if before["transformers"] != transformers.__version__:
        pytest.skip(f"docs/towers.json was walked with transformers {before['transformers']}")
    assert found["models"].keys() == before["models"].keys()
    assert found["attending"] == before["attending"]
