"""Compare a wheel with git: exactly the package's tracked modules, py.typed and data, for any Python 3 on any system.

    python .ci/check_wheel.py llamina-*.whl        (in the repository's root)
"""
from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE_FOLDERS = ("engine", "kernels", "convert", "bench")


def expected() -> set[str]:
    """Names that the wheel must hold, from `git ls-files`."""
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = set()
    for name in tracked:
        folder, _, file = name.rpartition("/")
        top = name.split("/")[0]
        if top in PACKAGE_FOLDERS:
            ships = file.endswith((".py", ".c")) or folder in ("engine/data", "engine/serve/page")
        else:
            ships = not folder and (file.endswith(".py") or file == "py.typed")
        if ships:
            names.add(f"llamina/{name}")
    return names


def main(wheel: Path) -> int:
    if not wheel.name.endswith("-py3-none-any.whl"):
        print(f"{wheel.name}: is not a wheel for every Python 3 and system (py3-none-any)")
        return 1
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = expected()
    for name in sorted(found ^ wanted):
        print(f"{name}: " + ("is in the wheel and should not be" if name in found else "is missing from the wheel"))
    print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return 1 if found != wanted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
