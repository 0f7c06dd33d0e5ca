"""``python -m tokensieve.ops.native``: compile the CPU kernels."""

from tokensieve.ops.native.build import main

raise SystemExit(main())
