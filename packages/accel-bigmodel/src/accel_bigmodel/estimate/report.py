"""What ``accel estimate-memory`` does with its arguments."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from accel_core.errors import NotInstalledError

from . import show
from .headers import read_headers
from .memory import estimate_memory
from .options import EstimateOptions
from .shapes import ModelHeaders, NoHeadersError


def report(arguments: Namespace) -> int:
    """Print the estimate that ``arguments`` ask for; return the exit code."""
    # Wrong options are told before anything is read.
    options = EstimateOptions(
        optimizer=arguments.optimizer,
        batch_size=arguments.batch_size,
        sequence_length=arguments.sequence_length,
        gradient_checkpointing=arguments.gradient_checkpointing,
        shards=arguments.shards,
        zero_stage=arguments.zero_stage,
        master_weights=arguments.master_weights,
        eager_attention=arguments.attention == "eager",
    )
    if arguments.trust_remote_code:
        _say(f"WARNING: --trust_remote_code lets code of {arguments.model_name} run on this machine")
    headers = _headers(arguments)
    estimate = estimate_memory(headers, arguments.dtypes, options, library_name=arguments.library_name)
    if arguments.json:
        print(json.dumps(show.facts(arguments.model_name, estimate), indent=2))
    else:
        print("\n".join(show.lines(arguments.model_name, estimate, show.columns())))
    return 0


def _headers(arguments: Namespace) -> ModelHeaders:
    name = arguments.model_name
    try:
        headers = read_headers(name, revision=arguments.revision, offline=arguments.offline)
    except NoHeadersError as missing:
        return _built(arguments, missing)
    if arguments.trust_remote_code:
        _say("--trust_remote_code was not needed: the headers say everything, and nothing was run")
    return headers


def _built(arguments: Namespace, missing: NoHeadersError) -> ModelHeaders:
    """Return what a library makes of the configuration; raise the first error when there is none."""
    if not missing.config:
        raise missing
    library = arguments.library_name or missing.library
    if not library:
        library = "timm" if "architecture" in missing.config else "transformers"
    _say(f"{missing.what}; {library} builds the model from its configuration instead")
    # Only here: this imports torch.
    from .library import Wanted, build_headers

    wanted = Wanted(
        name=arguments.model_name,
        config=missing.config,
        revision=arguments.revision,
        offline=arguments.offline,
        trust_remote_code=arguments.trust_remote_code,
    )
    try:
        return build_headers(wanted, library)
    except NotInstalledError as error:
        raise error from missing


def _say(text: str) -> None:
    print(show.plain(text), file=sys.stderr)


__all__ = ["report"]
