"""Rooms for what is not settled: architectures of our own and reconstructions of networks whose sources are thin.

``import tokensieve.prototype`` enters their names in timm's registry, so that ``timm.create_model`` knows them.
"""

from tokensieve.prototype import backbones as backbones
