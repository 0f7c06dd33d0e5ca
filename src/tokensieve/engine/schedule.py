"""Which method acts at which block and how many tokens that leaves, worked out before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokensieve.engine.counts import Counts, counts
from tokensieve.errors import TokensieveError
from tokensieve.families._layout import Layout
from tokensieve.methods import _options as option
from tokensieve.methods._method import POINTS, Method
from tokensieve.methods._view import Signal
from tokensieve.tokens.decision import return_point

OF_THE_WHOLE: frozenset[Signal] = frozenset({"cls_row", "received", "logits", "outputs"})


@dataclass(frozen=True)
class Step:
    """One method at one block: ``ordinal`` counts the method's sites, ``key`` names its learned part in the Site and
    ``label`` the method in the record."""

    method: Method
    ordinal: int
    key: str
    label: str


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
        reason = method.refuse(layout)
        if reason is not None:
            raise TokensieveError(f"{method.name}: {reason}")
        _check_windows(method, acting, layout)
        for ordinal, block in enumerate(acting):
            steps = plan.setdefault(block, [])
            if any(type(step.method) is type(method) and step.method.point == method.point for step in steps):
                raise TokensieveError(
                    f"two {method.name} methods want the same tokens in block {block}: give them different sites"
                )
            steps.append(Step(method, ordinal, f"{method.name}_{place}", str(method)))
            for number in _skipping(method, block, ordinal, layout):
                if number in skipped and skipped[number] is not method:
                    raise TokensieveError(
                        f"{skipped[number].name} and {method.name} both make tokens skip block {number}: "
                        "give them different sites"
                    )
                skipped[number] = method
    _check_undisturbed(plan, layout)
    _check_skippers(plan, skipped, layout)
    _check_mixers(plan, skipped)
    placed = {block: tuple(steps) for block, steps in sorted(plan.items())}
    _check_undivided(placed, counts(placed, layout), layout)
    return placed


def _check_windows(method: Method, acting: Sequence[int], layout: Layout) -> None:
    """A method that reads the attention of an image acts where the image attends as a whole."""
    wrong = [block for block in acting if block in layout.windowed]
    if wrong and method.needs(layout) & OF_THE_WHOLE:
        whole = [block for block in range(layout.depth) if block not in layout.windowed]
        advice = (
            f"give it sites among {whole}" if whole else "no block has it whole, so choose a method that reads none"
        )
        raise TokensieveError(
            f"{method.name} reads the attention of an image in block {wrong[0]}, where it is cut into windows or "
            f"joined with that of others: {advice}"
        )


def _check_lists(method: Method, sites: int) -> None:
    """An option that lists one value per site lists at least one, and none for a site that there is not."""
    for name, kind in method.option_types().items():
        value = getattr(method, name)
        if option.is_list_for_sites(kind) and isinstance(value, tuple) and not 1 <= len(value) <= max(sites, 1):
            raise TokensieveError(
                f"{method.name}: {name} lists {len(value)} values, and the method acts at {sites} sites: "
                f"give one value, or a list of 1 to {sites}"
            )


def _check_skippers(plan: dict[int, list[Step]], skipped: dict[int, Method], layout: Layout) -> None:
    """Tokens that skip are chosen where all tokens are present."""
    for block, steps in plan.items():
        for step in steps:
            other = skipped.get(block)
            chooses = step.method.returns_at(step.ordinal, layout) != "end"
            if chooses and other is not None and other is not step.method:
                raise TokensieveError(
                    f"{step.method.name} chooses in block {block} which tokens skip, and {other.name} makes tokens "
                    "skip that block: give them sites that are not neighbours"
                )


def _check_mixers(plan: dict[int, list[Step]], skipped: dict[int, Method]) -> None:
    """No method mixes all tokens while some are away: these would return to places that are gone."""
    for block, steps in plan.items():
        for step in steps:
            # Behind a block, what counts is which tokens are away in the next one.
            other = skipped.get(block + 1 if step.method.point == "after" else block)
            if step.method.mixes and other is not None and other is not step.method:
                raise TokensieveError(
                    f"{step.method.name} mixes all tokens in block {block}, and {other.name} makes tokens skip that "
                    "block: give them other sites"
                )


def _check_undisturbed(plan: dict[int, list[Step]], layout: Layout) -> None:
    """No method moves tokens that will part again as they were joined."""
    for block, steps in plan.items():
        for step in steps:
            if not step.method.undisturbed:
                continue
            span = _skipping(step.method, block, step.ordinal, layout)
            for number in span:
                for other in plan.get(number, ()):
                    if other.method is not step.method:
                        raise TokensieveError(
                            f"{step.method.name} joins tokens in block {block} that part again behind block "
                            f"{span[-1]}, and {other.method.name} would move them in block {number}: give "
                            f"{other.method.name} sites outside blocks {span[0]} to {span[-1]}"
                        )


def _check_undivided(placed: dict[int, tuple[Step, ...]], walked: Counts, layout: Layout) -> None:
    """A method that acts on the grid of all patches finds all of them there."""
    every = layout.patches
    earlier: Step | None = None
    for block, steps in placed.items():
        for step in sorted(steps, key=lambda step: POINTS.index(step.method.point)):
            before, after = walked.steps[block, step.key]
            wants = step.method.undivided and step.method.remaining(every, step.ordinal, layout) < every
            if wants and before < every:
                assert earlier is not None
                raise TokensieveError(
                    f"{step.method.name} acts on the grid of all {every} patches, and {earlier.method.name} leaves "
                    f"{before} of them to block {block}: give {step.method.name} sites before those of "
                    f"{earlier.method.name}"
                )
            if after < before:
                earlier = step


def _skipping(method: Method, block: int, site: int, layout: Layout) -> range:
    until = method.returns_at(site, layout)
    if until == "end":
        return range(0)
    acting = block + 1 if method.point == "after" else block
    end, after_attention = return_point(until, block, method.point)
    return range(acting, end + 1 if after_attention else end)
