# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve import answers as answers
from tokensieve import data as data
from tokensieve import export as export
from tokensieve import families as families
from tokensieve import language as language
from tokensieve import measure as measure
from tokensieve import methods as methods
from tokensieve import models as models
from tokensieve import pixels as pixels
from tokensieve import plan as plan
from tokensieve import tokens as tokens
from tokensieve import train as train
from tokensieve._version import VERSION as __version__
from tokensieve.engine.apply import is_applied as is_applied
from tokensieve.engine.trace import Trace as Trace
from tokensieve.engine.trace import trace as trace
from tokensieve.errors import RefusedError as RefusedError
from tokensieve.errors import TokensieveError as TokensieveError
from tokensieve.errors import TokensieveWarning as TokensieveWarning
from tokensieve.export.run import export_model as export_model
from tokensieve.families._family import Family as Family
from tokensieve.families._layout import Layout as Layout
from tokensieve.families._locate import list_families as list_families
from tokensieve.language.apply import applied as applied
from tokensieve.language.apply import apply as apply
from tokensieve.language.apply import remove as remove
from tokensieve.language.encoder import TextEncoder as TextEncoder
from tokensieve.methods._method import Method as Method
from tokensieve.methods._registry import list_language_methods as list_language_methods
from tokensieve.methods._registry import list_methods as list_methods
from tokensieve.methods._spec import parse as parse
from tokensieve.methods._spec import spell as spell
from tokensieve.methods._spec import sweep as sweep
from tokensieve.methods._view import View as View
from tokensieve.methods.ailurus import AiluRus as AiluRus
from tokensieve.methods.algm import ALGM as ALGM
from tokensieve.methods.asvit import ASViT as ASViT
from tokensieve.methods.atc import ATC as ATC
from tokensieve.methods.ats import ATS as ATS
from tokensieve.methods.ats import ATSShare as ATSShare
from tokensieve.methods.avit import AViT as AViT
from tokensieve.methods.bat import BAT as BAT
from tokensieve.methods.bat import BATPaper as BATPaper
from tokensieve.methods.controls import Grid as Grid
from tokensieve.methods.controls import Random as Random
from tokensieve.methods.controls import TopK as TopK
from tokensieve.methods.cropr import Cropr as Cropr
from tokensieve.methods.cubist import CubistMerge as CubistMerge
from tokensieve.methods.diffrate import DiffRate as DiffRate
from tokensieve.methods.dpcknn import DPCKNN as DPCKNN
from tokensieve.methods.dtem import DTEM as DTEM
from tokensieve.methods.dynamicvit import DynamicViT as DynamicViT
from tokensieve.methods.evit import EViT as EViT
from tokensieve.methods.evovit import EvoViT as EvoViT
from tokensieve.methods.expedite import Expedite as Expedite
from tokensieve.methods.gtp import GTP as GTP
from tokensieve.methods.ipcv import IPCV as IPCV
from tokensieve.methods.kmedoids import KMedoids as KMedoids
from tokensieve.methods.language.cdpruner import CDPruner as CDPruner
from tokensieve.methods.language.dart import DART as DART
from tokensieve.methods.language.divprune import DivPrune as DivPrune
from tokensieve.methods.language.downsample import Downsample as Downsample
from tokensieve.methods.language.eadp import EADP as EADP
from tokensieve.methods.language.evs import EVS as EVS
from tokensieve.methods.language.fastv import FastV as FastV
from tokensieve.methods.language.mmtok import MMTok as MMTok
from tokensieve.methods.language.pixelprune import PixelPrune as PixelPrune
from tokensieve.methods.language.prefix_controls import PrefixGrid as PrefixGrid
from tokensieve.methods.language.prefix_controls import PrefixRandom as PrefixRandom
from tokensieve.methods.language.prumerge import PruMerge as PruMerge
from tokensieve.methods.language.pyramiddrop import PyramidDrop as PyramidDrop
from tokensieve.methods.language.recoverable import RecoverableCompression as RecoverableCompression
from tokensieve.methods.language.sparsevlm import SparseVLM as SparseVLM
from tokensieve.methods.language.sparsity_meets_similarity import SparsityMeetsSimilarity as SparsityMeetsSimilarity
from tokensieve.methods.language.vidcom2 import VidCom2 as VidCom2
from tokensieve.methods.language.visionzip import VisionZip as VisionZip
from tokensieve.methods.language.vispruner import VisPruner as VisPruner
from tokensieve.methods.mctf import MCTF as MCTF
from tokensieve.methods.pitome import PiToMe as PiToMe
from tokensieve.methods.ppt import PPT as PPT
from tokensieve.methods.prototype.imagepiece import ImagePiece as ImagePiece
from tokensieve.methods.prototype.jmp import JMP as JMP
from tokensieve.methods.prototype.psvit import PSViT as PSViT
from tokensieve.methods.prototype.votemix import VoteMix as VoteMix
from tokensieve.methods.tokenlearner import TokenLearner as TokenLearner
from tokensieve.methods.tome import ToMe as ToMe
from tokensieve.methods.tosa import ToSA as ToSA
from tokensieve.models.checkpoint import SievedModel as SievedModel
from tokensieve.models.checkpoint import from_pretrained as from_pretrained
from tokensieve.models.checkpoint import load as load
from tokensieve.models.checkpoint import push_to_hub as push_to_hub
from tokensieve.models.checkpoint import save as save
from tokensieve.plan.plan import SpeedPlan as SpeedPlan
from tokensieve.plan.plan import make_plan as make_plan
from tokensieve.tokens.decision import Assignment as Assignment
from tokensieve.tokens.decision import KeepMask as KeepMask
from tokensieve.tokens.soft import SoftAssignment as SoftAssignment
from tokensieve.tokens.state import Tokens as Tokens

__all__ = [
    "ALGM",
    "ATC",
    "ATS",
    "BAT",
    "DART",
    "DPCKNN",
    "DTEM",
    "EADP",
    "EVS",
    "GTP",
    "IPCV",
    "JMP",
    "MCTF",
    "PPT",
    "ASViT",
    "ATSShare",
    "AViT",
    "AiluRus",
    "Assignment",
    "BATPaper",
    "CDPruner",
    "Cropr",
    "CubistMerge",
    "DiffRate",
    "DivPrune",
    "Downsample",
    "DynamicViT",
    "EViT",
    "EvoViT",
    "Expedite",
    "Family",
    "FastV",
    "Grid",
    "ImagePiece",
    "KMedoids",
    "KeepMask",
    "Layout",
    "MMTok",
    "Method",
    "PSViT",
    "PiToMe",
    "PixelPrune",
    "PrefixGrid",
    "PrefixRandom",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "RecoverableCompression",
    "RefusedError",
    "SievedModel",
    "SoftAssignment",
    "SparseVLM",
    "SparsityMeetsSimilarity",
    "SpeedPlan",
    "TextEncoder",
    "ToMe",
    "ToSA",
    "TokenLearner",
    "Tokens",
    "TokensieveError",
    "TokensieveWarning",
    "TopK",
    "Trace",
    "VidCom2",
    "View",
    "VisPruner",
    "VisionZip",
    "VoteMix",
    "__version__",
    "applied",
    "apply",
    "export_model",
    "from_pretrained",
    "is_applied",
    "list_families",
    "list_language_methods",
    "list_methods",
    "load",
    "make_plan",
    "parse",
    "push_to_hub",
    "remove",
    "save",
    "spell",
    "sweep",
    "trace",
]
