"""Every model name that timm lists in these files is exact at no-op and really reduced, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm

from tests.helpers import walk

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
    "cait_xxs24_224": "refused",
}


@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_names(name: str) -> None:
    found = walk.judge(name)
    assert found["status"] == DOZEN[name], found["reason"]
    assert bool(found["reason"]) == (found["status"] == "refused")


def test_the_recorded_walk_names_every_model() -> None:
    recorded = json.loads((Path(__file__).parents[2] / "docs" / "families.json").read_text(encoding="utf-8"))
    if recorded["timm"] != timm.__version__:
        pytest.skip(f"docs/families.json was walked with timm {recorded['timm']}, installed is {timm.__version__}")
    assert sorted(recorded["models"]) == walk.names()
    assert {found["status"] for found in recorded["models"].values()} <= {"exact", "refused"}


@pytest.mark.slow
def test_every_name() -> None:
    walked = walk.walk(walk.names())["models"]
    failed = {name: found["reason"] for name, found in walked.items() if found["status"] not in ("exact", "refused")}
    assert not failed
    assert all(found["reason"] for found in walked.values() if found["status"] == "refused")
    assert sum(found["status"] == "exact" for found in walked.values()) > 315
