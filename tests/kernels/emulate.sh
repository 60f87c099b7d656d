# Runs portable.cpp on emulated processors with every instruction set.
#   emulate.sh SUMS EMULATOR PROGRAM CPU:BEST ... -- ISA ...
# BEST, ISA: numbers of dfq_abi.h. With an ISA up to BEST the output must be SUMS, beyond it the program must end with 2;
# BEST must be what the library chose by itself (else 3).
set -eu
sums=$1 emulator=$2 program=$3
shift 3
processors=
while [ "$1" != -- ]; do
  processors="$processors $1"
  shift
done
shift
for processor in $processors; do
  cpu=${processor%:*} best=${processor#*:}
  for isa in "$@"; do
    code=0
    $emulator -cpu "$cpu" "$program" "$isa" "$best" >"$program.out" 2>"$program.err" || code=$?
    if [ "$isa" -le "$best" ]; then wanted=0; else wanted=2; fi
    if [ "$code" != "$wanted" ]; then
      echo "$cpu, instruction set $isa: ended with $code, not $wanted" >&2
      cat "$program.err" >&2
      exit 1
    fi
    if [ "$wanted" = 0 ]; then cmp "$sums" "$program.out"; fi
    echo "$cpu, instruction set $isa: $([ "$wanted" = 0 ] && echo agrees || echo refused)"
  done
done
