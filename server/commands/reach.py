"""Finds numbers of a run that can never be met, before anything is started: not after a day of waiting for sites."""

from __future__ import annotations

from pathlib import Path

from fedcompress.errors import ConfigError
from fedcompress.identity.registry import Registry
from server.commands.processes import list_node_keys, name_node
from server.round.signatures import load_coordinator_key
from server.settings import Settings


def check_reach(settings: Settings) -> list[str]:
    """Check that the sites that can take part are enough for what the run asks for.

    Args:
        settings: of the run, whose keys are registered by now.

    Returns:
        What is allowed, but looks forgotten, as lines for people.

    Raises:
        ConfigError: fewer sites can join, or be admitted, than a round needs; names the number and what it is up to.
    """
    run, coordinator = settings.run, settings.coordinator
    if run.quorum > run.min_sites:
        rule = f"must be at most {run.min_sites}, the min-sites: a round would begin with too few sites to end"
        raise ConfigError("run.quorum", run.quorum, rule)
    if run.buffer > run.min_sites:
        rule = f"must be at most {run.min_sites}, the min-sites: each site is in a version once"
        raise ConfigError("run.buffer", run.buffer, rule)
    nodes = [name_node(key) for key in list_node_keys(coordinator)]
    if nodes and len(nodes) < run.min_sites:
        rule = f"must be at most {len(nodes)}, the SuperNodes with a key in node_keys: {', '.join(nodes)}"
        raise ConfigError("run.min-sites", run.min_sites, rule)
    if not run.require_signatures:
        return []
    load_coordinator_key(coordinator.state_path, required=True)
    sites = _find_signers(coordinator.state_path)
    if len(sites) < run.min_sites:
        known = ", ".join(sites) if sites else "none"
        rule = (
            f"must be at most {len(sites)}, the sites with a registered key ({known}): register more with"
            " `fedcompress keys register SITE.pub --site SITE`, or set require-signatures = false"
        )
        raise ConfigError("run.min-sites", run.min_sites, rule)
    unsigned = sorted(set(nodes) - set(sites))
    if nodes and unsigned:
        names = ", ".join(unsigned)
        return [
            f"warning: {names}: a SuperNode's key lies in node_keys, and no key of a site of that name is registered"
        ]
    return []


def _find_signers(state: Path) -> list[str]:
    """Return the names of the sites with a key that may be used."""
    with Registry(state) as registry:
        return sorted({signer.site for signer in registry.signers() if signer.revoked is None})
