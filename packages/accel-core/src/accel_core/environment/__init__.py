"""The environment contract: every variable that accel reads or sets, as a documented constant.

One module per family: ``run`` (every run), ``fsdp``, ``deepspeed``, ``megatron``, ``parallelism``,
``fp8``, ``processes`` (torchrun, SLURM, MPI) and ``machine`` (folders, threads, other tools). The
first six have a frozen record each, which reads its variables (``from_environ``) and writes them
(``to_environ``), one for one; a field that is None is a variable that is not set.
"""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from . import deepspeed as deepspeed
    from . import fp8 as fp8
    from . import fsdp as fsdp
    from . import machine as machine
    from . import megatron as megatron
    from . import parallelism as parallelism
    from . import processes as processes
    from . import run as run
    from .codecs import Codec as Codec
    from .codecs import parse_bool as parse_bool
    from .codecs import parse_float as parse_float
    from .codecs import parse_int as parse_int
    from .deepspeed import DeepSpeedConfig as DeepSpeedConfig
    from .fp8 import Fp8Config as Fp8Config
    from .fsdp import FsdpConfig as FsdpConfig
    from .known import FAMILIES as FAMILIES
    from .known import PREFIXES as PREFIXES
    from .known import UnknownVariable as UnknownVariable
    from .known import unknown_variables as unknown_variables
    from .known import variables as variables
    from .megatron import MegatronConfig as MegatronConfig
    from .parallelism import ParallelismVariables as ParallelismVariables
    from .patching import clear_environment as clear_environment
    from .patching import patch_environment as patch_environment
    from .records import Record as Record
    from .records import Variable as Variable
    from .run import LOG_LEVELS as LOG_LEVELS
    from .run import RunConfig as RunConfig

_NAMES = {
    "Codec": ".codecs",
    "DeepSpeedConfig": ".deepspeed",
    "FAMILIES": ".known",
    "Fp8Config": ".fp8",
    "FsdpConfig": ".fsdp",
    "LOG_LEVELS": ".run",
    "MegatronConfig": ".megatron",
    "PREFIXES": ".known",
    "ParallelismVariables": ".parallelism",
    "Record": ".records",
    "RunConfig": ".run",
    "UnknownVariable": ".known",
    "Variable": ".records",
    "clear_environment": ".patching",
    "deepspeed": ".deepspeed",
    "fp8": ".fp8",
    "fsdp": ".fsdp",
    "machine": ".machine",
    "megatron": ".megatron",
    "parallelism": ".parallelism",
    "parse_bool": ".codecs",
    "parse_float": ".codecs",
    "parse_int": ".codecs",
    "patch_environment": ".patching",
    "processes": ".processes",
    "run": ".run",
    "unknown_variables": ".known",
    "variables": ".known",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
