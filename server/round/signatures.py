"""Whose reply it is: the signature is verified before anything in it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import AdmissionError, ConfigError
from fedcompress.identity import PrivateKey, Registry, Signer
from fedcompress.identity.registry import COORDINATOR, coordinator_key
from fedcompress.identity.tasks import sign_task
from fedcompress.wire import Limits, seal_of

REASONS: dict[str, str] = {
    "signature": "there is no signature, or a wrong one",
    "unknown-key": "signed by a key that is not registered here",
    "revoked": "signed by a key that is revoked",
    "swapped-site": "signed by the key of another site",
}


def _refusal(code: str, site: str) -> AdmissionError:
    return AdmissionError(code, f"signature: {site or 'no site'}: {REASONS[code]}")


@dataclass(frozen=True)
class SignaturePolicy:
    """Which signatures count.

    Args:
        folder: state directory with the registry; read for each reply, so that a revocation counts at once.
        required: whether a reply without a registered key is refused. If not, sites that have no key
            are taken as they say who they are; those that have one must sign all the same.
    """

    folder: Path
    required: bool

    def signer(self, data: bytes, limits: Limits, claimed: str) -> Signer | None:
        """Whose signature an envelope has; None if it has none that is known, and that may be.

        Args:
            data: one envelope, of which nothing was decoded.
            limits: of its size.
            claimed: the site that it is said to be from.

        Raises:
            WireError: the frame is malformed.
            AdmissionError: ``signature``, ``unknown-key`` or ``revoked``.
        """
        seal = seal_of(data, limits)
        if not seal.signature:
            if self.required:
                raise _refusal("signature", claimed)
            return None
        with Registry(self.folder) as registry:
            signer = registry.signer_of(seal, claimed=claimed)
            is_known = registry.knows(claimed)
        if signer is not None and signer.revoked is not None:
            raise _refusal("revoked", signer.site)
        if signer is None and self.required:
            raise _refusal("signature" if is_known else "unknown-key", claimed)
        return signer

    def check_site(self, signer: Signer | None, site: str) -> None:
        """Compare who has signed with who the header says has sent it.

        Raises:
            AdmissionError: ``swapped-site``, or ``signature`` where a site that has a key has not used it.
        """
        if signer is not None and signer.site != site:
            raise AdmissionError(
                "swapped-site", f"signature: {site or 'no site'}: {REASONS['swapped-site']}, {signer.site}"
            )
        if signer is None:
            with Registry(self.folder) as registry:
                if registry.knows(site):
                    raise _refusal("signature", site)


def load_coordinator_key(folder: Path, *, required: bool) -> PrivateKey | None:
    """The key that the coordinator signs with.

    Raises:
        ConfigError: signatures are required, and there is none.
    """
    key = coordinator_key(folder)
    if key is None and required:
        rule = f"needs the coordinator's own key: fedcompress keys new {COORDINATOR} -o {folder} (or set it to false)"
        raise ConfigError("require-signatures", True, rule)
    return key


def sign_task_message(key: PrivateKey | None, task: TrainTask, payload: bytes) -> str:
    """The coordinator's signature of a task and its downlink, hex; empty if it has no key."""
    return sign_task(key, task.to_json(), payload) if key is not None else ""
