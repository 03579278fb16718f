"""Screen candidate drug molecules: describe, fingerprint, learn from measurements, predict, rank.

    python examples/drug_screening.py                    the whole screen, on this machine
    python examples/drug_screening.py --run NAME         on the workers of a running manager
    python examples/drug_screening.py --molecules 120    a smaller one

The molecules are real: 1,017 Nav1.7 channel blockers with their measured activity (ChEMBL document
CHEMBL2321810; 85 of the values are exactly 5 or 6, probably where the assay ended, and are taken as they are), which
the rdkit package carries.  All but three are aryl sulphonamides, ``head-SO2-N-tail``.  The screen learns activity from
structure, and then ranks molecules that are not among the measured: every head joined to every common tail.

    describe         canonical SMILES, scaffold, head and tail                        rdkit
    fingerprint      Morgan fingerprints, radius 2, 2,048 bits                        rdkit, numpy
    cross_validate   a random forest scored on molecules it has not seen             scikit-learn, numpy
    recombine        new molecules from heads and tails, with drug-likeness           rdkit
    predict          a forest on a bootstrap sample predicts every new molecule      scikit-learn, numpy

Nothing below says what the functions need: lfm finds it in their code, and each runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors, rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from rich.console import Console
from rich.text import Text
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold, KFold
from stages import Stages, columns, show

import lfm

T = TypeVar("T")
DATA = "rdkit/Contrib/FreeWilson/data/CHEMBL2321810"


class Described(NamedTuple):
    """One measured molecule.  ``head`` and ``tail`` are empty where it is not of the series."""

    name: str
    smiles: str
    scaffold: str
    head: str
    tail: str


class Candidate(NamedTuple):
    """One molecule that has not been measured."""

    smiles: str
    weight: float  # g/mol
    logp: float
    qed: float  # drug-likeness, 0 to 1


class Found(NamedTuple):
    """What the screen found."""

    activity: np.ndarray  # measured pIC50 of each molecule
    scores: dict[str, list[tuple[np.ndarray, np.ndarray]]]  # per way of leaving out: (which molecules, predictions)
    candidates: list[Candidate]
    votes: np.ndarray  # (forests, candidates): predicted pIC50
    nearest: tuple[np.ndarray, np.ndarray]  # per candidate: similarity to, and index of, the nearest measured molecule


# ------------------------------------------------------------------ the functions that run as calls


def describe(lines: Sequence[str]) -> list[Described]:
    """Parse lines of ``SMILES name``, and cut each molecule at its sulphonamide's S-N bond."""
    sulphonamide = Chem.MolFromSmarts("[c][SX4](=O)(=O)[N;!R][#6]")
    described = []
    for line in lines:
        smiles, name = line.split()
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise ValueError(f"{name}: {smiles} is not a molecule")
        head = tail = ""
        matches = molecule.GetSubstructMatches(sulphonamide)
        if len(matches) == 1:
            sulphur, nitrogen = matches[0][1], matches[0][4]
            bond = molecule.GetBondBetweenAtoms(sulphur, nitrogen).GetIdx()
            pieces = Chem.FragmentOnBonds(molecule, [bond], dummyLabels=[(1, 1)])
            halves = [Chem.MolToSmiles(piece) for piece in Chem.GetMolFrags(pieces, asMols=True)]
            if len(halves) == 2:
                tail, head = sorted(halves, key=lambda half: "S(=O)(=O)" in half)
        scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=molecule)
        described.append(Described(name, Chem.MolToSmiles(molecule), scaffold, head, tail))
    return described


def fingerprint(smiles: Sequence[str]) -> np.ndarray:
    """Morgan fingerprints, eight bits to a byte: an array of (molecules, 256)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = [generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]
    return np.packbits(np.array(bits, dtype=np.uint8), axis=1)


def cross_validate(packed: np.ndarray, activity: np.ndarray, groups: np.ndarray, by: str, fold: int, seed: int):
    """Train on four fifths, predict the fifth left out: (which molecules, what was predicted for them).

    ``by="scaffolds"`` leaves whole scaffolds out, so that the forest is asked about chemistry it has not seen;
    ``by="molecules"`` leaves random molecules out, whose close relatives it has seen.
    """
    splitter = (GroupKFold if by == "scaffolds" else KFold)(5, shuffle=True, random_state=seed)
    bits = np.unpackbits(packed, axis=1)
    train, test = list(splitter.split(bits, activity, groups if by == "scaffolds" else None))[fold]
    forest = RandomForestRegressor(100, max_features="sqrt", random_state=seed, n_jobs=1)
    forest.fit(bits[train], activity[train])
    return test, forest.predict(bits[test])


def recombine(heads: Sequence[str], tails: Sequence[str]) -> list[Candidate]:
    """Every head joined to every tail, with the properties that a chemist looks at first."""
    how = Chem.MolzipParams()
    how.label = Chem.MolzipLabel.Isotope
    candidates = []
    for head in map(Chem.MolFromSmiles, heads):
        for tail in map(Chem.MolFromSmiles, tails):
            molecule = Chem.molzip(head, tail, how)
            weight, logp = Descriptors.MolWt(molecule), Crippen.MolLogP(molecule)
            candidates.append(Candidate(Chem.MolToSmiles(molecule), weight, logp, QED.qed(molecule)))
    return candidates


def predict(packed: np.ndarray, activity: np.ndarray, unknown: np.ndarray, seed: int) -> np.ndarray:
    """Train one forest on a bootstrap sample of the measured molecules; predict the others."""
    sample = np.random.default_rng(seed).integers(len(activity), size=len(activity))
    forest = RandomForestRegressor(100, max_features="sqrt", random_state=seed, n_jobs=1)
    forest.fit(np.unpackbits(packed[sample], axis=1), activity[sample])
    return forest.predict(np.unpackbits(unknown, axis=1)).astype(np.float32)


# ------------------------------------------------------------------ the screen


def screen(stages: Stages, lines: list[str], activities: dict[str, float], scale: argparse.Namespace) -> Found:
    """All five steps; the results of each are the arguments of the next."""
    # As soon as a chunk is described it is fingerprinted: no step waits for the whole of the step before.
    described: dict[int, list[Described]] = {}
    prints = {}
    waiting = {stages.submit(describe, part): i for i, part in enumerate(chunks(lines, scale.chunk))}
    for future in as_completed(waiting):
        i = waiting[future]
        described[i] = future.result()
        prints[i] = stages.submit(fingerprint, [molecule.smiles for molecule in described[i]])
    molecules = [molecule for i in sorted(described) for molecule in described[i]]
    packed = np.concatenate([prints[i].result() for i in sorted(prints)])
    activity = np.array([activities[molecule.name] for molecule in molecules])
    scaffolds = {molecule.scaffold: None for molecule in molecules}
    groups = np.array([list(scaffolds).index(molecule.scaffold) for molecule in molecules])

    # The scores and the new molecules do not need each other: both are under way together.
    folds = {
        by: [
            stages.submit(cross_validate, packed, activity, groups, by, fold, seed)
            for seed in range(scale.repeats)
            for fold in range(5)
        ]
        for by in ("molecules", "scaffolds")
    }
    heads = list({molecule.head: None for molecule in molecules if molecule.head})
    tails = Counter(molecule.tail for molecule in molecules if molecule.tail)
    common = [tail for tail, _ in tails.most_common(scale.tails)]
    joined = stages.each(recombine, ((part, common) for part in chunks(heads, 2 * scale.chunk)))
    known = {molecule.smiles for molecule in molecules}
    new = {c.smiles: c for part in joined for c in part if c.smiles not in known and c.weight <= 600}

    unknown = np.concatenate(stages.each(fingerprint, ((part,) for part in chunks(list(new), 8 * scale.chunk))))
    votes = stages.each(predict, ((packed, activity, unknown, seed) for seed in range(scale.members)))
    scores = {by: [future.result() for future in futures] for by, futures in folds.items()}
    return Found(activity, scores, list(new.values()), np.array(votes), nearest(unknown, packed))


def show_quality(console: Console, found: Found) -> None:
    """How far the predictions for molecules left out of the training can be trusted."""
    activity = found.activity
    rows = []
    for by, folds in found.scores.items():
        # One prediction for each molecule and repeat: the folds of a repeat cover each molecule once.
        whole = [join(folds[i : i + 5], len(activity)) for i in range(0, len(folds), 5)]
        errors = [activity - predicted for predicted in whole]
        r2 = np.mean([1 - np.sum(e**2) / np.sum((activity - activity.mean()) ** 2) for e in errors])
        rho = np.mean([np.corrcoef(ranks(activity), ranks(predicted))[0, 1] for predicted in whole])
        rms = np.mean([np.sqrt(np.mean(e**2)) for e in errors])
        rows.append((by, f"{r2:.2f}", f"{rho:.2f}", f"{rms:.2f}", f"{activity.std():.2f}"))
    note = (
        f"Trained and scored on {len(activity)} molecules of one chemical series, pIC50 {activity.min():.1f} to "
        f"{activity.max():.1f}: the scores hold for that series only.  mean: the error of always saying the mean."
    )
    table = columns("left out", "R²", "Spearman ρ", "RMS error", "mean")
    show(console, "How good are the predictions?  (5-fold cross-validation)", table, rows, note)


def show_best(console: Console, found: Found, top: int) -> None:
    """The candidates predicted to be most active, with what speaks for and against each."""
    mean, spread = found.votes.mean(axis=0), found.votes.std(axis=0)
    similarity, neighbour = found.nearest
    rows = []
    for i in np.argsort(-mean)[:top]:
        c = found.candidates[i]
        around = f"{similarity[i]:.2f} {found.activity[neighbour[i]]:.2f}"
        drug = f"{c.weight:.0f}", f"{c.logp:.1f}", f"{c.qed:.2f}"
        rows.append((f"{mean[i]:.2f} ± {spread[i]:.2f}", around, *drug, Text(c.smiles)))  # Text: "[nH]" is no markup
    note = (
        f"pIC50: ± is the spread of {len(found.votes)} forests, not the error (for that see below).  nearest: Tanimoto "
        "similarity to the most similar measured molecule, and that one's measured pIC50."
    )
    table = columns("pIC50", "nearest", "weight", "logP", "QED")
    table.add_column("SMILES", overflow="fold")
    show(console, f"Best of {len(found.candidates)} new molecules, by predicted activity", table, rows, note)


def nearest(unknown: np.ndarray, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each unknown molecule the Tanimoto similarity and the index of the most similar measured one."""
    a, b = (np.unpackbits(x, axis=1).astype(np.float32) for x in (unknown, packed))
    common = a @ b.T
    similarity = common / (a.sum(axis=1)[:, None] + b.sum(axis=1) - common)
    return similarity.max(axis=1), similarity.argmax(axis=1)


def join(folds: list[tuple[np.ndarray, np.ndarray]], length: int) -> np.ndarray:
    """The predictions of all folds, in the order of the molecules."""
    predicted = np.full(length, np.nan)
    for where, values in folds:
        predicted[where] = values
    return predicted


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean, as Spearman's coefficient wants them."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def chunks(items: list[T], length: int) -> Iterator[list[T]]:
    return (items[i : i + length] for i in range(0, len(items), length))


def read_data(limit: int | None) -> tuple[list[str], dict[str, float]]:
    """Lines of ``SMILES name``, and the activity by name, from the files that rdkit carries."""
    root = Path(str(metadata.distribution("rdkit").locate_file(DATA)))
    smiles, table = root.with_name(root.name + ".smi"), root.with_name(root.name + "_act.csv")
    if not (smiles.exists() and table.exists()):
        sys.exit(f"This rdkit carries no {smiles.name}; rdkit's wheel does: pip install rdkit")
    with table.open() as file:
        activities = {row["Name"]: float(row["Act"]) for row in csv.DictReader(file)}
    lines = smiles.read_text().splitlines()
    if limit and limit < len(lines):  # the file is sorted by activity: take them from all of its range
        lines = [lines[i] for i in np.linspace(0, len(lines) - 1, limit).astype(int)]
    return lines, activities


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a running manager: its name, directory or connection file")
    parser.add_argument("--molecules", type=int, metavar="N", help="only N of the measured molecules")
    parser.add_argument("--chunk", type=int, default=8, metavar="N", help="molecules in one call (default 8)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each cross-validation (default 3)")
    parser.add_argument("--members", type=int, default=20, metavar="N", help="forests that predict (default 20)")
    parser.add_argument("--tails", type=int, default=12, metavar="N", help="most common tails to join (default 12)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="candidates to show (default 10)")
    return parser.parse_args()


def main() -> None:
    scale = arguments()
    console = Console(highlight=False)
    lines, activities = read_data(scale.molecules)
    console.print(f"{len(lines)} measured molecules: Nav1.7 blockers, ChEMBL document CHEMBL2321810")
    with lfm.Executor(scale.run) as executor:
        stages = Stages(executor, console)
        with stages:
            found = screen(stages, lines, activities, scale)
        show_best(console, found, scale.top)
        show_quality(console, found)
        stages.show_usage()


if __name__ == "__main__":
    main()
