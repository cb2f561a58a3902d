"""Signatures tell whose reply it is; they are verified before anything in the reply is decoded."""

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
    """Decides which signatures count.

    Attributes:
        folder: state directory with the registry; read for each reply, so that a revocation counts at once.
        required: whether a reply without a registered key is refused. If not, sites that have no key are taken as they
            say who they are; those that have one must sign all the same.
    """

    folder: Path
    required: bool

    def find_signer(self, data: bytes, limits: Limits, claimed: str) -> Signer | None:
        """Find out whose signature an envelope has.

        Args:
            data: one packed envelope, of which nothing was decoded.
            limits: of its size.
            claimed: the site that it is said to be from.

        Returns:
            The owner of the key; None where no key is required and the signature is absent or by none that is known.

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
        """Compare who has signed a reply with the site that its header names.

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
    """Load the key that the coordinator signs with from its state directory; return None if there is none.

    Raises:
        ConfigError: signatures are required, and there is no key.
    """
    key = coordinator_key(folder)
    if key is None and required:
        rule = f"needs the coordinator's own key: fedcompress keys new {COORDINATOR} -o {folder} (or set it to false)"
        raise ConfigError("require-signatures", True, rule)
    return key


def sign_task_message(key: PrivateKey | None, task: TrainTask, payload: bytes) -> str:
    """Sign a task and its downlink with the coordinator's key.

    Args:
        key: the coordinator's; None if it has none.
        task: what the site is to do.
        payload: its downlink.

    Returns:
        The signature, hex; empty without a key.
    """
    return sign_task(key, task.to_json(), payload) if key is not None else ""
