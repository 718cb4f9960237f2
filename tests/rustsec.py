"""Checks Cargo.lock against the RustSec advisories of a date, offline.

rustsec.py                 exits with 1 if a locked version is vulnerable or unsound
rustsec.py update CLONE    writes tests/advisories.toml from a clone of the advisory database
"""

import os
import re
import subprocess
import sys
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
LIST = os.path.join(HERE, "advisories.toml")
LOCKS = [os.path.join(HERE, "..", "Cargo.lock"), os.path.join(HERE, "..", "fuzz", "Cargo.lock")]

#: Advisories that are accepted, each with its reason.
ACCEPTED = {}


def key(text):
    """A version as something that sorts: a pre-release comes before its release."""
    core, _, pre = text.split("+")[0].partition("-")
    numbers = [int(n) for n in core.split(".")]
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")] if pre else [(2, 0, "")]
    return tuple(numbers + [0] * (3 - len(numbers))), parts


def caret(text):
    """The first version that `^text` leaves out."""
    numbers = [int(n) for n in text.split("-")[0].split(".")]
    for i, n in enumerate(numbers):
        if n or i == len(numbers) - 1:
            return ".".join(str(n) for n in numbers[:i] + [n + 1])
    return "1"


def meets(version, requirement):
    """True when a version meets all comparators of a requirement."""
    own = key(version)
    for comparator in requirement.split(","):
        operator, bound = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*(\S+)\s*", comparator).groups()
        limit = key(bound)
        good = {
            ">=": own >= limit,
            "<=": own <= limit,
            ">": own > limit,
            "<": own < limit,
            "=": own == limit,
            "^": limit <= own < key(caret(bound)),
            "~": own >= limit and own[0][:2] == limit[0][:2],
            None: limit <= own < key(caret(bound)),
        }[operator]
        if not good:
            return False
    return True


def check():
    with open(LIST, "rb") as file:
        known = tomllib.load(file)
    by_package = {}
    for advisory in known["advisory"]:
        by_package.setdefault(advisory["package"], []).append(advisory)
    found, count = 0, 0
    for lock in filter(os.path.exists, LOCKS):
        with open(lock, "rb") as file:
            packages = [p for p in tomllib.load(file)["package"] if "source" in p]
        count += len(packages)
        for package in packages:
            for advisory in by_package.get(package["name"], ()):
                safe = advisory["patched"] + advisory["unaffected"]
                if advisory["id"] in ACCEPTED or any(meets(package["version"], r) for r in safe):
                    continue
                found += 1
                print(f"{advisory['id']} {package['name']} {package['version']}: {advisory['kind']}")
    print(f"rustsec: {count} locked packages, {len(known['advisory'])} advisories of {known['date']}, {found} found")
    return 1 if found else 0


def update(clone):
    def git(*arguments):
        return subprocess.run(["git", "-C", clone, *arguments], check=True, capture_output=True, text=True).stdout

    commit, date = git("log", "-1", "--format=%H %cs").split()
    lines = [
        "# RustSec advisories by package, from https://github.com/rustsec/advisory-db; written by rustsec.py.",
        f'date = "{date}"',
        f'commit = "{commit}"',
        "advisory = [",
    ]
    for path in git("ls-tree", "-r", "--name-only", "HEAD", "crates/").splitlines():
        entry = tomllib.loads(git("show", f"HEAD:{path}").split("```toml")[1].split("```")[0])
        about, versions = entry["advisory"], entry["versions"]
        kind = about.get("informational", "vulnerability")
        if "withdrawn" in about or kind in ("unmaintained", "notice"):
            continue
        quoted = {name: str(versions.get(name, [])).replace("'", '"') for name in ("patched", "unaffected")}
        lines.append(
            f'  {{ id = "{about["id"]}", package = "{about["package"]}", kind = "{kind}", '
            f'patched = {quoted["patched"]}, unaffected = {quoted["unaffected"]} }},'
        )
    with open(LIST, "w") as file:
        file.write("\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["update"]:
        update(sys.argv[2])
    else:
        sys.exit(check())
