"""Functions as users write them, one stack each; ``needs``: the distributions that each imports itself."""

import functools
import json
import math

import awkward as ak
import boost_histogram as bh
import click
import fontTools.misc.bezierTools as bezier
import hist
import joblib
import matplotlib.figure
import msgpack
import numpy as np
import packaging.version
import pandas as pd
import psutil
import pyparsing as pp
import requests
import rich.table
import scipy.stats
import sortedcontainers
import threadpoolctl
import tqdm
import uproot
import xxhash
import zstandard
from dateutil import parser as dates
from hypothesis import strategies
from PIL import Image
from pygments.lexers import PythonLexer
from rdkit import Chem
from rdkit.Chem import Descriptors
from scipy import optimize
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

CASES = []


def case(*arguments, needs, gives):
    def remember(function):
        CASES.append((function, arguments, set(needs), gives))
        return function

    return remember


@case(20, needs=(), gives=math.factorial(20))
def standard_library(n):
    return math.factorial(n)


@case('{"a": [1, 2]}', needs=(), gives=3)
def standard_library_inside(text):
    from statistics import fmean

    return int(fmean(json.loads(text)["a"]) * 2)


@case([3.0, 4.0], needs={"numpy"}, gives=5.0)
def norm(values):
    return float(np.linalg.norm(values))


@case(5, needs={"numpy"}, gives=10)
def imported_in_the_body(n):
    import numpy

    return int(numpy.arange(n).sum())


@case([1.0, 2.0, 3.0], needs={"scipy"}, gives=0.0)
def scipy_test(values):
    return round(float(scipy.stats.ttest_1samp(values, 2.0).statistic), 6)


@case(needs={"scipy"}, gives=2.0)
def scipy_root():
    return round(optimize.brentq(lambda x: x * x - 4, 0, 5), 6)


@case("a,b\n1,2\n3,4", needs={"pandas"}, gives=4)
def table(text):
    import io

    frame = pd.read_csv(io.StringIO(text))
    return int(frame["a"].sum())


@case(needs={"scikit-learn"}, gives=2.0)
def regression():
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
    return round(float(model.coef_[0]), 6)


SCALED = make_pipeline(StandardScaler(), LinearRegression()).fit([[0.0], [1.0]], [0.0, 1.0])


@case(needs={"scikit-learn"}, gives=1.0)
def fitted_model_among_the_globals():
    return round(float(SCALED.predict([[1.0]])[0]), 6)


@case("CCO", needs={"rdkit"}, gives=3)
def heavy_atoms(smiles):
    return Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()


@case("c1ccccc1", needs={"rdkit"}, gives=78.11)
def weight(smiles):
    return round(Descriptors.MolWt(Chem.MolFromSmiles(smiles)), 2)


@case(needs={"matplotlib"}, gives=True)
def picture():
    import io

    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2, 3])
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue().startswith(b"\x89PNG")


@case(needs={"awkward"}, gives=[1, 0, 2])
def ragged():
    return ak.num(ak.Array([[1], [], [1, 2]])).to_list()


@case(needs={"boost-histogram"}, gives=2.0)
def histogram():
    return float(bh.Histogram(bh.axis.Regular(4, 0, 1)).fill([0.1, 0.2]).sum())


@case(needs={"hist"}, gives=1.0)
def friendly_histogram():
    return float(hist.Hist(hist.axis.Regular(4, 0, 1)).fill([0.1]).sum())


@case(needs={"uproot"}, gives="uproot")
def root_file():
    return uproot.__name__


@case(needs={"requests"}, gives="https://example.org/?a=1")
def request():
    return requests.Request("GET", "https://example.org/", params={"a": 1}).prepare().url


@case("a", needs={"click"}, gives="a")
def command(word):
    return click.unstyle(click.style(word, fg="red"))


@case(needs={"rich"}, gives=1)
def pretty():
    made = rich.table.Table("x")
    made.add_row("1")
    return made.row_count


@case({"a": 1}, needs={"msgpack"}, gives={"a": 1})
def wire(value):
    return msgpack.unpackb(msgpack.packb(value))


@case("1.10", "1.9", needs={"packaging"}, gives=True)
def versions(a, b):
    return packaging.version.Version(a) > packaging.version.Version(b)


@case(needs={"psutil"}, gives=True)
def process():
    return psutil.Process().pid > 0


@case("1 + 2", needs={"pyparsing"}, gives=["1", "+", "2"])
def parsed(text):
    return (pp.Word(pp.nums) + "+" + pp.Word(pp.nums)).parse_string(text).as_list()


@case([3, 1, 2], needs={"sortedcontainers"}, gives=[1, 2, 3])
def sorted_list(values):
    return list(sortedcontainers.SortedList(values))


@case(needs={"tqdm"}, gives=6)
def progress():
    return sum(tqdm.tqdm([1, 2, 3], disable=True))


@case(b"x", needs={"xxhash"}, gives=16)
def hashed(data):
    return len(xxhash.xxh64_hexdigest(data))


@case(b"x" * 100, needs={"zstandard"}, gives=b"x" * 100)
def squeezed(data):
    return zstandard.decompress(zstandard.compress(data))


@case("3 May 2024", needs={"python-dateutil"}, gives=(2024, 5, 3))
def day(text):
    found = dates.parse(text)
    return found.year, found.month, found.day


@case(needs={"pillow"}, gives=(4, 2))
def image():
    return Image.new("RGB", (4, 2)).size


@case("x = 1", needs={"pygments"}, gives="x")
def tokens(text):
    return next(iter(PythonLexer().get_tokens(text)))[1]


@case(needs={"fonttools"}, gives=1.0)
def glyph_curve():
    return round(bezier.approximateQuadraticArcLength((0, 0), (0.5, 0), (1, 0)), 3)


@case(needs={"joblib"}, gives=[1, 4, 9])
def parallel():
    return joblib.Parallel(n_jobs=1)(joblib.delayed(square)(n) for n in (1, 2, 3))


def square(n):
    return n * n


@case(needs={"threadpoolctl"}, gives=[])
def pools():
    return threadpoolctl.threadpool_info()


@case(needs={"hypothesis"}, gives=True)
def strategy():
    return strategies.just(1) is not None


def scaled(by, values):
    return [float(v) for v in np.asarray(values) * by]


CASES.append((functools.partial(scaled, 2), ([1, 2],), {"numpy"}, [2.0, 4.0]))


class Model:
    """A class of the script's own, with state and a method that needs more than its constructor."""

    def __init__(self, slope):
        self.slope = slope

    def predict(self, values):
        return [float(v) for v in np.multiply(values, self.slope)]


CASES.append((Model(3).predict, ([1.0],), {"numpy"}, [3.0]))


def outer(power):
    def inner(values):
        return float(np.power(values, power).sum())

    return inner


CASES.append((outer(2), ([1, 2],), {"numpy"}, 5.0))
CASES.append((lambda text: yaml_free(text), ("a: 1",), set(), ["a", "1"]))


def yaml_free(text):
    try:
        import yaml_that_nobody_has as yaml
    except ImportError:
        yaml = None
    return yaml or [part.strip() for part in text.split(":")]
