"""The lock names one version of everything that the kit needs, and CI tests with those versions."""

import re
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kit import ROOT

LOCK = ROOT / "requirements.lock"


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def asked() -> list[Requirement]:
    """What the requirements files ask for."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("requirements*.txt"))
    lines = (re.split("#| --", line)[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def test_the_lock_has_a_version_of_everything_asked_for_and_it_is_one_that_is_allowed() -> None:
    versions = locked()
    for requirement in asked():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_lock_has_everything_that_these_need() -> None:
    versions, left, seen = locked(), [canonicalize_name(one.name) for one in asked()], set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # an optional one; CI has them all
            continue
        left += [
            canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    assert seen - {"pip"} <= versions.keys()  # pip is what installs them


def test_ci_installs_the_locked_versions() -> None:
    installs = re.findall(r"pip install.*?\n(?!\s)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.DOTALL)
    assert installs and all("-c requirements.lock" in install for install in installs)
