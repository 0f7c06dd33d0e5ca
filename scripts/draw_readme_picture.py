"""Draw docs/images/tokens.png: what BAT, ToSA and ToMe do to one picture of the demo at its lowest budget.

python scripts/draw_readme_picture.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from tokensieve.demo import run

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "tokens.png"
WIDTH = 1500  # pixels
PICTURE = 1  # which of the demo's pictures


def main() -> None:
    subject = run.digits(images=1)
    run.draw(replace(subject, pictures=subject.pictures[PICTURE : PICTURE + 1]), run.variants(subject), OUTPUT)
    with Image.open(OUTPUT) as sheet:
        drawn = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    drawn.quantize(256).save(OUTPUT, optimize=True)
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    main()
