"""From a file of collision events to a picture of the Z boson: chunks in parallel, merged, fitted, drawn.

    python examples/hep_dimuon.py FILE.root          a file with a tree of muon pairs, as in CMS's open Z -> mu mu data
    python examples/hep_dimuon.py                    no file: simulates one first (a toy, and says so)
    python examples/hep_dimuon.py --run NAME FILE    on the workers of a running manager, which must see the same FILE

    histogram    one range of entries: read, select, invariant mass, fill         uproot, awkward, numpy, hist
    merge        add histograms, eight at a time                                    hist
    fit          peak: Breit-Wigner and Gaussian; background: exponential         scipy, numpy
    draw         the picture                                                        matplotlib, numpy

The tree holds one muon pair an entry: charges ``Q1, Q2``, and ``pt, eta, phi`` of both.  Where it has ``Type``, only
pairs of two well measured (global) muons are used, "GG": in the CMS sample the same event comes again with muons
reconstructed otherwise.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import NamedTuple

import awkward as ak
import hist
import numpy as np
import uproot
from matplotlib.figure import Figure
from rich.console import Console
from scipy.optimize import least_squares
from scipy.special import voigt_profile, xlogy
from stages import Stages

import lfm

MUON = 0.1056584  # GeV
Z_MASS, Z_WIDTH = 91.1880, 2.4955  # GeV; Particle Data Group 2024
LOW, HIGH = 60.0, 120.0  # GeV


class Filled(NamedTuple):
    """A histogram of masses, and how many entries were looked at for it."""

    masses: hist.Hist
    entries: int


class Peak(NamedTuple):
    """What the fit found: values and their errors, and the curves to draw."""

    mass: tuple[float, float]  # GeV
    resolution: tuple[float, float]  # GeV
    signal: tuple[float, float]  # pairs
    chi2: float
    freedom: int
    at: np.ndarray
    whole: np.ndarray  # pairs per bin, at ``at``
    background: np.ndarray


# ------------------------------------------------------------------ the functions that run as calls


def histogram(path: str, tree: str, bins: int, start: int, stop: int) -> Filled:
    """Invariant mass of the opposite-charge pairs with both muons above 10 GeV and inside the detector."""
    with uproot.open(path) as file:
        source = file[tree]
        wanted = [name for name in ("Q1", "pt1", "eta1", "phi1", "Q2", "pt2", "eta2", "phi2", "Type") if name in source]
        pairs = source.arrays(wanted, entry_start=start, entry_stop=stop)
    if "Type" in pairs.fields:
        pairs = pairs[pairs.Type == "GG"]
    keep = (pairs.Q1 * pairs.Q2 < 0) & (pairs.pt1 > 10) & (pairs.pt2 > 10)
    keep = keep & (abs(pairs.eta1) < 2.4) & (abs(pairs.eta2) < 2.4)
    pairs = pairs[keep]
    transverse = pairs.pt1 * pairs.pt2 * (np.cosh(pairs.eta1 - pairs.eta2) - np.cos(pairs.phi1 - pairs.phi2))
    masses = hist.Hist.new.Reg(bins, LOW, HIGH, name="mass", label="m [GeV]").Double()
    masses.fill(ak.to_numpy(np.sqrt(2 * transverse + 2 * MUON**2)))
    return Filled(masses, stop - start)


def merge(parts: list[Filled]) -> Filled:
    """The sum of some histograms."""
    return Filled(sum(part.masses for part in parts), sum(part.entries for part in parts))


def fit(counts: np.ndarray, edges: np.ndarray) -> Peak:
    """Likelihood fit of a Voigt profile (the Z's natural width is fixed) on an exponential.

    Least squares of the signed roots of Poisson deviances: the same minimum and the same errors as the likelihood
    has, also where bins are almost empty; their sum is the chi-squared of Baker and Cousins.
    """
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]

    def background(m, level, slope):
        return level * np.exp(-slope * (m - Z_MASS))

    def model(m, mass, resolution, signal, level, slope):
        return signal * width * voigt_profile(m - mass, resolution, Z_WIDTH / 2) + background(m, level, slope)

    def deviance(parameters):
        expected = np.maximum(model(middle, *parameters), 1e-9)
        term = 2 * (expected - counts + xlogy(counts, counts / expected))
        return np.sign(expected - counts) * np.sqrt(np.maximum(term, 0))

    guess = (Z_MASS, 2.0, 0.8 * counts.sum() + 1, 0.2 * counts.mean() + 0.01, 0.02)
    bounds = ([80, 0.1, 0, 0, -0.1], [100, 10, np.inf, np.inf, 0.3])
    best = least_squares(deviance, guess, bounds=bounds, x_scale=np.abs(guess))
    errors = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)))
    mass, resolution, signal, *_ = ((float(v), float(e)) for v, e in zip(best.x, errors, strict=True))
    at = np.linspace(edges[0], edges[-1], 601)
    whole, below = model(at, *best.x), background(at, *best.x[3:])
    return Peak(mass, resolution, signal, 2 * float(best.cost), len(counts) - len(best.x), at, whole, below)


def draw(counts: np.ndarray, edges: np.ndarray, peak: Peak, title: str, note: str) -> bytes:
    """The histogram, the fit and their difference, as a PNG file."""
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    fitted = np.interp(middle, peak.at, peak.whole)
    figure = Figure(figsize=(7.2, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.errorbar(middle, counts, np.sqrt(counts), width / 2, fmt="o", color="black", ms=3, lw=0.8, label="pairs")
    top.plot(peak.at, peak.whole, color="#c1272d", lw=1.8, label="fit")
    top.plot(peak.at, peak.background, color="#0b5394", lw=1.4, ls="--", label="background")
    top.set(ylabel=f"pairs / {width:g} GeV", xlim=(edges[0], edges[-1]), ylim=(0, 1.25 * max(counts.max(), 1)))
    top.set_title(title, loc="left", fontsize=12, fontweight="bold")
    top.set_title(note, loc="right", fontsize=9, color="0.35")
    top.legend(loc="upper right", frameon=False)
    numbers = (
        f"m = {peak.mass[0]:.3f} ± {peak.mass[1]:.3f} GeV",
        f"resolution = {peak.resolution[0]:.3f} ± {peak.resolution[1]:.3f} GeV",
        f"Z = {peak.signal[0]:,.0f} ± {peak.signal[1]:,.0f} pairs",
        f"χ² / ndf = {peak.chi2:.0f} / {peak.freedom}",
    )
    top.text(0.03, 0.95, "\n".join(numbers), transform=top.transAxes, va="top", linespacing=1.6)
    bottom.axhline(0, color="0.6", lw=0.8)
    bottom.plot(middle, (counts - fitted) / np.sqrt(fitted), "o", color="black", ms=3)
    bottom.set(xlabel="invariant mass of μ⁺μ⁻ [GeV]", ylabel="(pairs − fit) / σ", ylim=(-4, 4))
    for axes in (top, bottom):
        axes.tick_params(direction="in", top=True, right=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


# ------------------------------------------------------------------ a file where there is none


def simulate(path: Path, events: int, seed: int = 1) -> None:
    """Write a toy of Drell-Yan muon pairs: no generator, only enough physics for the peak to look as it should.

    Mass: a Breit-Wigner for the Z, and a falling exponential for the photon and the rest.  The pair gets a transverse
    momentum and a rapidity; the muons leave back to back in its frame (1 + cos² theta).  The detector smears their
    momenta by 1.5 % and sees pt > 10 GeV and |eta| < 2.4.
    """
    random = np.random.default_rng(seed)
    resonant = random.random(events) < 0.9
    mass = np.where(resonant, Z_MASS + Z_WIDTH / 2 * random.standard_cauchy(events), 40 + random.exponential(35, events))
    mass = np.clip(mass, 20, 500)
    pt, phi = random.gamma(1.6, 8.0, events), random.uniform(-np.pi, np.pi, events)
    rapidity = random.normal(0, 1.3, events)
    # 1 + cos² is three parts flat and one part cos², whose inverse is a cube root.
    flat, cubic = random.uniform(-1, 1, events), np.cbrt(random.uniform(-1, 1, events))
    cosine = np.where(random.random(events) < 0.75, flat, cubic)
    sine, around = np.sqrt(1 - cosine**2), random.uniform(-np.pi, np.pi, events)
    # The pair's four-momentum, and each muon's: from its rest frame by a boost.
    transverse_mass = np.hypot(mass, pt)
    pair = np.stack([pt * np.cos(phi), pt * np.sin(phi), transverse_mass * np.sinh(rapidity)])
    energy = transverse_mass * np.cosh(rapidity)
    momentum = np.sqrt(mass**2 / 4 - MUON**2) * np.stack([sine * np.cos(around), sine * np.sin(around), cosine])
    branches: dict[str, np.ndarray] = {}
    charge = random.choice([-1, 1], events)
    for number, sign in ((1, 1), (2, -1)):
        along = sign * (pair * momentum).sum(axis=0) / mass
        boosted = sign * momentum + pair * (along / (energy + mass) + 0.5)
        smeared = boosted * random.normal(1, 0.015, events)
        branches |= {
            f"pt{number}": np.hypot(smeared[0], smeared[1]),
            f"eta{number}": np.arcsinh(smeared[2] / np.hypot(smeared[0], smeared[1])),
            f"phi{number}": np.arctan2(smeared[1], smeared[0]),
            f"Q{number}": (sign * charge).astype(np.int32),
        }
    seen = np.all([(branches[f"pt{n}"] > 10) & (abs(branches[f"eta{n}"]) < 2.4) for n in (1, 2)], axis=0)
    with uproot.recreate(path) as file:
        file["events"] = {name: values[seen] for name, values in branches.items()}


# ------------------------------------------------------------------ the analysis


def analyse(stages: Stages, path: Path, tree: str, chunk: int | None, title: str, note: str) -> tuple[Filled, Peak, bytes]:
    """Histograms of entry ranges, merged eight at a time; then the fit, then the picture."""
    with uproot.open(path) as file:
        entries = file[tree].num_entries
    step = chunk or max(-(-entries // 100), 20)
    bins = 120 if entries > 50_000 else 60
    ranges = [(i, min(i + step, entries)) for i in range(0, entries, step)]
    parts = stages.each(histogram, ((str(path), tree, bins, *entry_range) for entry_range in ranges))
    while len(parts) > 1:
        parts = stages.each(merge, ((parts[i : i + 8],) for i in range(0, len(parts), 8)))
    counts, edges = parts[0].masses.to_numpy()
    peak = stages.submit(fit, counts, edges).result()
    return parts[0], peak, stages.submit(draw, counts, edges, peak, title, note).result()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="a ROOT file of muon pairs; none: one is simulated")
    parser.add_argument("--run", help="a running manager: its name, directory or connection file")
    parser.add_argument("--tree", default="events", help="the tree in the file (default events)")
    parser.add_argument("--chunk", type=int, metavar="N", help="entries in one call (default: about 100 calls)")
    parser.add_argument("--events", type=int, default=400_000, metavar="N", help="to simulate (default 400000)")
    parser.add_argument("--picture", type=Path, default=Path("dimuon.png"), help="where to (default dimuon.png)")
    return parser.parse_args()


def main() -> None:
    scale = arguments()
    console = Console(highlight=False)
    if scale.file is None:
        path, title, note = Path("dimuon_toy.root").resolve(), "Z → μμ, toy simulation", "not real data"
        console.print(f"No file given: simulating {scale.events} muon pairs (a toy, not real data) into {path.name}")
        simulate(path, scale.events)
    elif not scale.file.is_file():
        sys.exit(f"{scale.file}: no such file")
    else:
        path, title, note = scale.file.resolve(), "Z → μμ", scale.file.name
    with lfm.Executor(scale.run) as executor:
        stages = Stages(executor, console)
        with stages:
            filled, peak, picture = analyse(stages, path, scale.tree, scale.chunk, title, note)
        scale.picture.write_bytes(picture)
        console.print(
            f"\n{filled.masses.sum():.0f} muon pairs between {LOW:.0f} and {HIGH:.0f} GeV among {filled.entries} entries"
            f"\npeak at {peak.mass[0]:.3f} ± {peak.mass[1]:.3f} GeV (the Z: {Z_MASS:.3f}), χ²/ndf "
            f"{peak.chi2:.0f}/{peak.freedom}, resolution {peak.resolution[0]:.3f} ± {peak.resolution[1]:.3f} GeV"
            f"\npicture: {scale.picture}"
        )
        stages.show_usage()


if __name__ == "__main__":
    main()
