"""The options of ``accel launch`` that this version honours; the others are in `later_options`."""

from __future__ import annotations

from .later_options import LATER
from .options import Group, Option

PRECISIONS = ("no", "fp16", "bf16", "fp8")

GENERAL = Group(
    "",
    (
        Option("config_file", "take what is not given here from this YAML or JSON file", metavar="FILE"),
        Option(
            "quiet",
            "say nothing about a failure that the script's own output does not",
            kind=None,
            short="-q",
        ),
        Option("module", "run the script as 'python -m' does", kind=None, short="-m"),
        Option("no_python", "run the script itself, without a Python interpreter before it", kind=None),
        Option(
            "debug",
            "compare the ranks before every collective, and show the launcher's own stack trace",
            kind=None,
        ),
    ),
)
HARDWARE = Group(
    "Hardware Selection Arguments",
    (
        Option("cpu", "run on the CPU even where there is an accelerator", default=False, kind=None),
        Option("multi_gpu", "require GPUs: refuse to start when there are fewer than processes", False, None),
    ),
)
RESOURCES = Group(
    "Resource Selection Arguments",
    (
        Option(
            "mixed_precision",
            "compute in this precision where it is safe: no, fp16, bf16, or that of an installed package",
            choices=PRECISIONS,
            closed=False,
            metavar="NAME",
        ),
        Option(
            "num_processes",
            "processes over all machines (default: one per accelerator of this machine, or 1)",
            kind=int,
            metavar="N",
        ),
        Option("num_machines", "machines that take part (default: 1)", kind=int, metavar="N"),
        Option(
            "enable_cpu_affinity",
            "bind each process to the CPU cores nearest to its device (Linux)",
            default=False,
            kind=None,
        ),
        Option(
            "num_cpu_threads_per_process",
            "OMP_NUM_THREADS of each process (default: for several processes, an equal share of the CPUs)",
            kind=int,
            metavar="N",
        ),
    ),
)
DISTRIBUTED = Group(
    "Distributed GPUs",
    (
        Option("gpu_ids", "use only these accelerators of this machine: '0,2', or 'all'", metavar="IDS"),
        Option("same_network", "all machines share a network: a note, nothing depends on it", False, None),
        Option("machine_rank", "number of this machine, from 0 (default: 0)", kind=int, metavar="N"),
        Option("main_process_ip", "address of machine 0", metavar="ADDRESS"),
        Option(
            "main_process_port",
            "port on machine 0; 0 or nothing takes a free one when there is one machine",
            kind=int,
            metavar="PORT",
        ),
        Option("tee", "also write these streams to --log_dir: 0 none, 1 out, 2 err, 3 both", "0", short="-t"),
        Option("log_dir", "keep the output of every process under this folder", metavar="FOLDER"),
        Option("role", "a name for the workers, shown in logs", "default", metavar="NAME"),
        Option("rdzv_backend", "how machines find each other: static or c10d", "static", metavar="NAME"),
        Option(
            "rdzv_conf", "further settings of the rendezvous: key1=value1,key2=value2", "", metavar="CONF"
        ),
        Option("max_restarts", "times to start all processes again after a failure", 0, int, metavar="N"),
        Option(
            "grace_period",
            "seconds that processes get to save and leave after a signal, before they are killed",
            30.0,
            float,
            metavar="SECONDS",
        ),
        Option("monitor_interval", "seconds between looks at the processes", 0.1, float, metavar="SECONDS"),
    ),
)
DYNAMO = (
    "no", "eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi",
    "fx2trt", "onnxrt", "tensorrt", "aot_torchxla_trace_once", "torhchxla_trace_once", "tvm",
)  # fmt: skip
"""As documented, slip of the pen included: the same backend as ``torchxla_trace_once``."""
COMPILE = Group(
    "torch.compile Arguments",
    (
        Option(
            "dynamo_backend",
            "compile models with this torch.compile backend: inductor, aot_eager, eager, ..., or no",
            choices=DYNAMO,
            metavar="NAME",
        ),
        Option(
            "dynamo_mode",
            "what the compiler optimises for: default, reduce-overhead, max-autotune",
            default="default",
            choices=("default", "reduce-overhead", "max-autotune"),
            metavar="NAME",
        ),
        Option("dynamo_use_fullgraph", "refuse models that do not compile into one graph", False, None),
        Option("dynamo_use_dynamic", "trace shapes as dynamic from the start", False, None),
        Option(
            "dynamo_use_regional_compilation",
            "compile repeated blocks once each instead of the whole model",
            default=False,
            kind=None,
        ),
    ),
)
OTHER = Group(
    "Training Arguments",
    (
        Option(
            "gradient_accumulation_steps",
            "micro-batches per optimizer step, where the script leaves it open",
            kind=int,
            metavar="N",
        ),
    ),
)

GROUPS = (GENERAL, HARDWARE, RESOURCES, DISTRIBUTED, COMPILE, OTHER, *LATER)

__all__ = ["GROUPS", "PRECISIONS"]
