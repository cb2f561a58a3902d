"""Each attack that the threat model names, and the tests that try it; ``make chaos`` runs them and prints the table."""

from __future__ import annotations

SIGNED, ADMISSION, KEYS = (
    "tests/unit/server/round/test_signatures.py",
    "tests/unit/server/round/test_admission.py",
    "tests/unit/identity",
)
HOSTILE = "tests/hostile/test_refused.py"
CONFIG, FLOWER = "tests/unit/config", "tests/unit/test_flower.py"
BUNDLES = "tests/hostile/test_bundles.py"
AUDIT = f"{KEYS}/test_audit.py"
ATTACKS: dict[str, tuple[str, ...]] = {
    "wrong key": (
        f"{SIGNED}::test_refused[unknown-key]",
        f"{SIGNED}::test_a_site_with_a_wrong_key_is_refused_and_told",
    ),
    "no or broken signature": (
        f"{SIGNED}::test_refused[signature]",
        f"{SIGNED}::test_a_signature_cannot_be_cut_off",
    ),
    "revoked key": (f"{SIGNED}::test_refused[revoked]", f"{SIGNED}::test_revoked_while_the_run_goes_on"),
    "swapped site": (
        f"{SIGNED}::test_refused[swapped-site]",
        f"{SIGNED}::test_a_site_takes_only_what_is_signed_for_it",
    ),
    "another coordinator": (f"{SIGNED}::test_another_coordinator_is_refused_by_all_sites",),
    "expired certificate": (f"{KEYS}/test_certs.py::test_an_expired_certificate",),
    "self-made certificate, downgraded TLS, unregistered node": (
        "tests/integration/test_tls.py::test_a_superlink_knows_its_nodes_and_a_node_its_superlink",
    ),
    "asking for another site's data, speaking in its name": ("tests/integration/test_other_sites.py",),
    "replayed body": (f"{SIGNED}::test_replayed_to_another_round", f"{ADMISSION}::test_refused[duplicate-site]"),
    "old task": (f"{SIGNED}::test_an_old_task_is_refused",),
    "forged round": (f"{ADMISSION}::test_refused[round]", f"{ADMISSION}::test_refused[base-digest]"),
    "oversized frame, decompression bomb": (f"{HOSTILE}::test_a_bomb_allocates_nothing",),
    "not-a-number and infinite values": (f"{HOSTILE}::test_sections_that_lie", f"{HOSTILE}::test_headers_that_lie"),
    "norm bomb": ("tests/unit/server/round/test_round.py::test_an_update_far_longer_than_the_others",),
    "path tricks in names": (
        "tests/unit/wire/test_envelope.py",
        f"{KEYS}/test_keys.py::test_names",
        f"{CONFIG}/test_train_task.py::test_bad_tasks",
        f"{CONFIG}/test_run_config.py::test_bad_run_configs",
    ),
    "hostile name, version or files of an app bundle (FAB)": (
        f"{BUNDLES}::test_no_bundle_changes_what_a_site_has",
        f"{BUNDLES}::test_bundles_that_flower_refuses",
        f"{BUNDLES}::test_files_that_lead_out_of_a_bundle",
        f"{BUNDLES}::test_a_version_that_leads_out_of_flowers_folder",
    ),
    "an app of another version": (
        f"{BUNDLES}::test_an_app_of_another_version",
        f"{FLOWER}::test_payloads_in_flower_records",
        f"{FLOWER}::test_the_apps_need_this_library",
    ),
    "log injection": (
        f"{KEYS}/test_audit.py::test_no_text_ends_a_line",
        f"{KEYS}/test_audit.py::test_an_injected_line",
    ),
    "changed, cut or exchanged audit log": (AUDIT,),
    "pickle and code in what is received": (
        "tests/repository/test_boundaries.py::test_nothing_received_is_unpickled_or_evaluated",
        "tests/hostile/test_no_pickle.py",
    ),
}
