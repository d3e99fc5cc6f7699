"""The installed packages that decide results, as environment.yaml lists them by the kinds of components."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.environment import installed_versions
from pipeline.plugin.registry import Registry
from pipeline.tokenize.stage import build_corpus

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params


def deciding_packages(params: Params, paths: Paths, installed: Registry) -> dict[str, dict[str, str]]:
    """By kind, the installed packages with components, and those that the chosen corpus makes its texts with.

    Args:
        params: Choose the corpus and its options.
        paths: The project's paths.
        installed: The components of installed packages.

    Raises:
        PipelineError: the corpus, or one of its options, does not exist.
    """
    packages = installed.packages()
    used = installed_versions(build_corpus(params, paths).packages())
    return packages | {"corpora": dict(sorted({**used, **packages["corpora"]}.items()))}
