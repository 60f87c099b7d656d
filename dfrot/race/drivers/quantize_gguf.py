"""llama.cpp's own quantizer: `python quantize_gguf.py IN OUT TYPE THREADS`, TYPE being Q4_0 or Q4_K_M."""

from __future__ import annotations

import sys

import llama_cpp

if __name__ == "__main__":
    source, out, kind, threads = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = int(threads)
    if code := llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters):
        raise SystemExit(f"llama_model_quantize returned {code}")
