"""``fedcompress site doctor`` prints one line for each thing that a site needs, and what to do where it is not so."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.commands.checks.base import FAIL, Check, Subject, fail, ok
from clients.commands.checks.compute import check_device, check_memory, check_packages
from clients.commands.checks.files import check_data, check_disk, check_model, check_permissions, check_tokenizer
from clients.commands.checks.identity import check_identity, check_tls
from clients.commands.checks.network import check_certificates, check_clock, check_superlink, check_worker
from clients.commands.common import site_path
from clients.commands.up import host_and_port
from clients.site import SiteConfig
from fedcompress.adapters.template import Template, load_template
from fedcompress.errors import ConfigError, FedCompressError
from fedcompress.formatting import escaped

# all checks, in the order of their lines
CHECKS: tuple[Callable[[Subject], list[Check]], ...] = (
    check_packages,
    check_permissions,
    check_disk,
    check_worker,
    check_superlink,
    check_certificates,
    check_tls,
    check_clock,
    check_identity,
    check_model,
    check_tokenizer,
    check_data,
    check_device,
    check_memory,
)

OFFLINE = "HF_HUB_OFFLINE"  # variable that keeps the hub's packages from asking the hub


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line.

    Attributes:
        site: path of site.toml.
        superlink: HOST:PORT; empty: site.toml's.
        insecure: whether the connection is to be without TLS.
        root_certificates: path of a PEM file; None: site.toml's.
        auth_supernode_private_key: path of the SuperNode's key; None: site.toml's.
        run_template: folder of the run's template, to compare with.
        max_length: tokens of an example.
        as_json: print JSON.
    """

    site: str
    superlink: str = ""
    insecure: bool = False
    root_certificates: str | None = None
    auth_supernode_private_key: str | None = None
    run_template: str | None = None
    max_length: int = 64
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.superlink:
            host_and_port(self.superlink)
        if self.max_length < 1:
            raise ConfigError("--max-length", self.max_length, "must be at least 1")


def run(options: Options, checks: tuple[Callable[[Subject], list[Check]], ...] = CHECKS) -> int:
    """Print every check as it is done; return 1 if one fails.

    Raises:
        ConfigError: there is no such site.toml.
    """
    results = []
    with _quiet():
        for check in examine(options, site_path(options.site), checks):
            results.append(check)
            if not options.as_json:
                print(f"{check.status:<5} {check.name:<13} {escaped(check.text)}", flush=True)
                if check.remedy:
                    print(f"{'':<19} -> {escaped(check.remedy)}", flush=True)
    failed = sum(check.status == FAIL for check in results)
    if options.as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in results]}))
    elif failed:
        print(f"{failed} of {len(results)} checks failed")
    return 1 if failed else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence, within the block, what packages say when they are imported: it is not a result."""
    before = logging.root.manager.disable
    offline = os.environ.get(OFFLINE)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if offline is None:
            os.environ.pop(OFFLINE, None)


def examine(options: Options, file: Path, checks: tuple[Callable[[Subject], list[Check]], ...]) -> Iterator[Check]:
    """Yield the results of all checks; only the first, if site.toml does not load.

    Args:
        options: from the command line.
        file: the site.toml.
        checks: functions from ``CHECKS``.

    Yields:
        Results, as each check is done.
    """
    try:
        site = SiteConfig.load(file)
    except FedCompressError as error:
        yield fail("config", str(error), f"correct {file}")
        return
    yield ok("config", f"{file}: site {site.name}")
    os.environ.setdefault(OFFLINE, "1")  # the model is here now, and no check waits for the hub
    template: Template | None = None
    if options.run_template:
        try:
            template = load_template(Path(options.run_template))
            yield ok("template", f"{options.run_template}: {template.name}, {template.objective.name}")
        except FedCompressError as error:
            yield fail("template", str(error), "ask the coordinator for the run's template")
    key = options.auth_supernode_private_key
    root = options.root_certificates
    subject = Subject(
        file=file,
        site=site,
        template=template,
        superlink=options.superlink or site.superlink.address,
        insecure=options.insecure,
        root_certificates=Path(root) if root else site.superlink.root_certificates,
        key=Path(key) if key else site.superlink.node_key,
        max_length=options.max_length,
    )
    for check in checks:
        try:
            yield from check(subject)
        except Exception as error:  # a check that breaks must not hide those after it
            text = f"could not be checked: {type(error).__name__}: {error}".splitlines()[0]
            yield fail(check.__name__.removeprefix("check_"), text, "tell us, with the command that you ran")
