"""Writes every golden case again; or only those named: `python generate_all.py gpt2_plain neo_plain`."""

import runpy
import sys
from pathlib import Path

import bf16

GOLDEN = Path(__file__).resolve().parent


def main():
    cases = sorted(path.parent for path in GOLDEN.glob("*/generate.py"))
    cases.sort(key=lambda folder: folder.name.startswith("bin_"))  # copies come after what they copy
    for folder in cases:
        if sys.argv[1:] and folder.name not in sys.argv[1:]:
            continue
        runpy.run_path(str(folder / "generate.py"), run_name="__main__")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.name:28} {size / 1000:7.0f} kB", flush=True)
    bf16.main(sys.argv[1:])


if __name__ == "__main__":
    main()
