#!/bin/sh
# run.sh PYTHON VERSION [pytest arguments]: tests/compat under one version of transformers.
# Its environment below build/compat has this transformers and what it needs in other versions; everything else, torch
# and dfq included, it finds in the environment of PYTHON.
set -eu
python=$1 version=$2
shift 2
folder=build/compat/$version
if [ ! -f "$folder/.installed" ]; then
  "$python" -m venv "$folder"
  shared=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$shared')" >"$own/shared.pth"
  ln -sfn "$shared/dfrot_kernels" "$own/dfrot_kernels"  # the native library is looked for in the environment's own folder
  "$folder/bin/python" -m pip install -qq --no-compile ${PIP_ARGS:-} "transformers==$version"
  touch "$folder/.installed"
fi
"$folder/bin/python" -c "import transformers as t; assert t.__version__ == '$version', t.__version__"
echo "transformers $version"
"$folder/bin/python" -m pytest -q -p no:cacheprovider tests/compat "$@"
