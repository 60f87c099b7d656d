"""Instructions of the innermost loops of an object file for 64-bit ARM, as the compiler left them.

    python tests/kernels/inner_loops.py OBJECT [FUNCTION] [INSTRUCTION]

One line per loop of the functions whose name matches FUNCTION that holds INSTRUCTION (regular expressions): its length,
how many of them touch the stack (sums that found no register), and the instructions by frequency. Where no such
processor is at hand, this is what can be said of speed. OBJECT lies in build/arm after `make emulate`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

Instruction = tuple[int, str, str]  # address, name, operands
BRANCH = re.compile(r"(b|b\..*|cbz|cbnz|tbz|tbnz)$")


def functions(path: str) -> Iterator[tuple[str, list[Instruction]]]:
    """(name, instructions) of each function of an object file."""
    command = ["aarch64-linux-gnu-objdump", "--disassemble", "--demangle", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in re.split(r"\n(?=[0-9a-f]+ <)", text):
        head, *lines = part.splitlines() or [""]
        found = [re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", line) for line in lines]
        yield head, [(int(m.group(1), 16), m.group(2), m.group(3)) for m in found if m]


def innermost(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """The loops that hold no other: from the target of a backward branch to the branch."""
    index = {address: i for i, (address, _, _) in enumerate(code)}
    loops = []
    for i, (_, name, operands) in enumerate(code):
        target = re.search(r"\b([0-9a-f]+) <", operands) if BRANCH.match(name) else None
        if target and index.get(int(target.group(1), 16), i + 1) <= i:
            loops.append((index[int(target.group(1), 16)], i))
    for first, last in loops:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            yield code[first : last + 1]


def main(path: str, function: str = "", instruction: str = "") -> None:
    for name, code in functions(path):
        for loop in innermost(code) if re.search(function, name) else ():
            if any(re.search(instruction, one) for _, one, _ in loop):
                stack = sum("[sp" in operands for _, _, operands in loop)
                mix = ", ".join(f"{count} {one}" for one, count in Counter(one for _, one, _ in loop).most_common())
                print(f"{name}\n  {len(loop)} instructions, {stack} on the stack: {mix}")


if __name__ == "__main__":
    main(*sys.argv[1:])
