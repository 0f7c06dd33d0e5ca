"""``python -m tokensieve.ops.cpu``: compile the CPU kernels."""

from tokensieve.ops.cpu.build import main

raise SystemExit(main())
