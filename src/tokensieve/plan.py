"""Which method acts at which block, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence

from tokensieve import option
from tokensieve.decision import return_point
from tokensieve.errors import TokensieveError
from tokensieve.method import POINTS, Method
from tokensieve.site import Step
from tokensieve.view import Layout


def schedule(methods: Sequence[Method], layout: Layout) -> dict[int, tuple[Step, ...]]:
    """Which method acts at which block.

    Raises:
        TokensieveError: sites outside the model, a schedule that removes more than there is, or methods in conflict.
    """
    plan: dict[int, list[Step]] = {}
    skipped: dict[int, Method] = {}
    if len(methods) > 1 and any(m.ragged for m in methods):
        names = ", ".join(m.name for m in methods)
        raise TokensieveError(
            f"{names} do not compose: with a different number of tokens per image a schedule of shares would depend on "
            "the batch; apply the ragged method alone"
        )
    for place, method in enumerate(methods):
        acting = method.blocks(layout.depth)
        if list(acting) != sorted(set(acting)) or (acting and not 0 <= acting[0] <= acting[-1] < layout.depth):
            raise TokensieveError(
                f"{method.name} acts at blocks {list(acting)}: expected ascending numbers below the depth "
                f"{layout.depth}"
            )
        _check_lists(method, len(acting))
        for ordinal, block in enumerate(acting):
            steps = plan.setdefault(block, [])
            if any(type(step.method) is type(method) and step.method.point == method.point for step in steps):
                raise TokensieveError(
                    f"two {method.name} methods want the same tokens in block {block}: give them different sites"
                )
            steps.append(Step(method, ordinal, f"{method.name}_{place}", str(method)))
            for number in _skipping(method, block):
                if number in skipped and skipped[number] is not method:
                    raise TokensieveError(
                        f"{skipped[number].name} and {method.name} both make tokens skip block {number}: "
                        "give them different sites"
                    )
                skipped[number] = method
    _check_skippers(plan, skipped)
    _simulate(plan, methods, layout)
    return {block: tuple(steps) for block, steps in sorted(plan.items())}


def _check_lists(method: Method, sites: int) -> None:
    """An option that lists one value per site lists at least one, and none for a site that there is not."""
    for name, kind in method.option_types().items():
        value = getattr(method, name)
        if option.is_list_for_sites(kind) and isinstance(value, tuple) and not 1 <= len(value) <= max(sites, 1):
            raise TokensieveError(
                f"{method.name}: {name} lists {len(value)} values, and the method acts at {sites} sites: "
                f"give one value, or a list of 1 to {sites}"
            )


def _check_skippers(plan: dict[int, list[Step]], skipped: dict[int, Method]) -> None:
    """Who skips is chosen where all are there to be chosen from."""
    for block, steps in plan.items():
        for step in steps:
            other = skipped.get(block)
            if step.method.returns != "end" and other is not None and other is not step.method:
                raise TokensieveError(
                    f"{step.method.name} chooses in block {block} which tokens skip, and {other.name} makes tokens "
                    "skip that block: give them sites that are not neighbours"
                )


def _skipping(method: Method, block: int) -> range:
    if method.returns == "end":
        return range(0)
    acting = block + 1 if method.point == "after" else block
    end, after_attention = return_point(method.returns, block, method.point)
    return range(acting, end + 1 if after_attention else end)


def _simulate(plan: dict[int, list[Step]], methods: Sequence[Method], layout: Layout) -> None:
    """Walk the counts through the blocks: every ``remaining`` must give something between 1 and what is there."""
    present = layout.grid[0] * layout.grid[1]
    away: list[tuple[tuple[int, bool], int]] = []
    for block in range(layout.depth):
        for point in POINTS:
            due = (block, point != "before")
            present += sum(count for at, count in away if at <= due)
            away = [(at, count) for at, count in away if at > due]
            for step in plan.get(block, ()):
                if step.method.point != point:
                    continue
                left = step.method.remaining(present, step.ordinal, layout)
                if not 1 <= left <= present:
                    raise TokensieveError(
                        f"{step.method} leaves {left} of {present} tokens in block {block}: expected 1 to {present}; "
                        "remove fewer"
                    )
                if step.method.returns != "end":
                    away.append((return_point(step.method.returns, block, point), present - left))
                present = left
