"""Distributions that a library imports only when a certain part of it is used: no import statement shows them.

A table, and one function that reads it.  Only what is installed is ever taken along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partner:
    """Code that needs ``library`` and says one of ``words`` needs one of ``modules`` as well."""

    library: str
    words: frozenset[str]  # attributes and imported names; string constants where ``said``
    modules: tuple[str, ...]  # alternatives: the first that is there will do
    said: bool = False


def _table(said: bool, rows: str) -> Iterator[Partner]:
    for row in rows.strip().splitlines():
        library, words, modules = (part.strip() for part in row.split("|"))
        for group in modules.split(","):
            yield Partner(library, frozenset(words.split()), tuple(group.split()), said)


TABLE = (
    # library | attributes, methods or imported names | modules: "a b, c" is one of a and b, and c
    *_table(False, """
pandas | read_parquet to_parquet | pyarrow fastparquet
pandas | read_feather to_feather read_orc to_orc ArrowDtype | pyarrow
pandas | read_excel ExcelFile | openpyxl python_calamine xlrd
pandas | to_excel ExcelWriter | openpyxl xlsxwriter
pandas | read_hdf to_hdf HDFStore | tables
pandas | read_html | lxml html5lib, bs4
pandas | read_xml to_xml | lxml
pandas | to_markdown | tabulate
pandas | to_latex style | jinja2
pandas | read_sql read_sql_query read_sql_table to_sql | sqlalchemy
pandas | plot boxplot hist scatter_matrix | matplotlib
pandas | to_xarray | xarray
pandas | read_spss | pyreadstat
polars | to_pandas from_pandas | pandas, pyarrow
polars | to_arrow from_arrow | pyarrow
polars | to_numpy | numpy
polars | read_excel | fastexcel openpyxl
polars | write_excel | xlsxwriter
xarray | open_dataset load_dataset open_mfdataset to_netcdf open_dataarray load_dataarray | netCDF4 h5netcdf scipy
xarray | open_mfdataset chunk | dask
xarray | open_zarr to_zarr | zarr
xarray | plot | matplotlib
dask | dataframe | pandas, pyarrow
dask | array | numpy
dask | distributed Client | distributed
sklearn | fetch_openml | pandas
sklearn | ConfusionMatrixDisplay RocCurveDisplay PrecisionRecallDisplay DecisionBoundaryDisplay plot_tree | matplotlib
sklearn | PartialDependenceDisplay LearningCurveDisplay ValidationCurveDisplay CalibrationDisplay | matplotlib
networkx | draw draw_networkx draw_networkx_nodes draw_networkx_edges draw_networkx_labels | matplotlib, numpy
networkx | spring_layout circular_layout shell_layout spectral_layout kamada_kawai_layout random_layout | numpy
networkx | to_numpy_array from_numpy_array | numpy
networkx | pagerank hits to_scipy_sparse_array from_scipy_sparse_array adjacency_matrix laplacian_matrix | numpy, scipy
networkx | incidence_matrix eigenvector_centrality_numpy katz_centrality_numpy algebraic_connectivity | numpy, scipy
networkx | to_pandas_edgelist from_pandas_edgelist to_pandas_adjacency from_pandas_adjacency | pandas, numpy
sympy | lambdify | numpy
sympy | plot plot3d | matplotlib, numpy
rdkit | PandasTools | pandas
awkward | to_arrow from_arrow to_parquet from_parquet to_feather from_feather | pyarrow
awkward | to_dataframe | pandas
hist | plot plot1d plot2d plot2d_full plot_ratio plot_pull | mplhep, matplotlib
hist | plot_ratio plot_pull | scipy
plotly | express | pandas, numpy
plotly | to_image write_image | kaleido
pydantic | EmailStr | email_validator
httpx | http2 | h2
statsmodels | graphics | matplotlib
geopandas | plot | matplotlib
"""),
    # library | string constants | modules
    *_table(True, """
pandas | pyarrow | pyarrow
pandas | fastparquet | fastparquet
pandas | openpyxl | openpyxl
pandas | xlsxwriter | xlsxwriter
pandas | xlrd | xlrd
pandas | calamine | python_calamine
pandas | numba | numba
pandas | numexpr | numexpr
pandas | lxml | lxml
pandas | html5lib bs4 | html5lib, bs4
xarray | netcdf4 | netCDF4
xarray | h5netcdf | h5netcdf
xarray | zarr | zarr
bs4 | lxml lxml-xml xml | lxml
bs4 | html5lib | html5lib
uproot | pd pandas | pandas
sklearn | pandas | pandas
sklearn | polars | polars
awkward | numba | numba
awkward | jax | jax
"""),
)  # fmt: skip

# The scheme of a URL constant -> alternatives, for libraries that open files and for those that open databases.
_FILES: dict[str, tuple[str, ...]] = {
    "s3": ("s3fs", "boto3"), "gs": ("gcsfs",), "gcs": ("gcsfs",), "abfs": ("adlfs",), "az": ("adlfs",),
    "hdfs": ("pyarrow",), "sftp": ("paramiko",), "ssh": ("paramiko",), "root": ("fsspec_xrootd", "XRootD"),
}  # fmt: skip
_DATABASES: dict[str, tuple[str, ...]] = {
    "postgresql": ("psycopg2", "psycopg", "asyncpg", "pg8000"), "mysql": ("MySQLdb", "pymysql"),
    "oracle": ("oracledb", "cx_Oracle"), "mssql": ("pyodbc", "pymssql"), "duckdb": ("duckdb_engine",),
}  # fmt: skip
_OPENERS = (
    "dask",
    "fsspec",
    "geopandas",
    "intake",
    "pandas",
    "polars",
    "pyarrow",
    "uproot",
    "xarray",
    "zarr",
)

There = Callable[[str], bool]


def wanted(
    libraries: Iterable[str], words: Iterable[str], constants: Iterable[str], there: There
) -> Iterator[tuple[str, str, str]]:
    """(module, library, word) for each lazy partner that the code will ask its libraries for and that is there."""
    needed, used, said = set(libraries), set(words), set(constants)
    for row in TABLE:
        if row.library in needed and (hits := row.words & (said if row.said else used)):
            # an engine that the code names wins over the default one
            named = (module for module in row.modules if module in said)
            module = next(filter(there, (*named, *row.modules)), None)
            if module:
                yield module, row.library, min(hits)
    for constant in sorted(said):
        scheme, colon, _ = constant.partition("://")
        dialect, _, driver = scheme.partition("+")
        openers, table = (("sqlalchemy",), _DATABASES) if dialect in _DATABASES else (_OPENERS, _FILES)
        if colon and dialect in table:
            module = next(filter(there, (driver,) if driver else table[dialect]), None)
            library = next((one for one in openers if one in needed), None)
            if module and library:
                yield module, library, f"{scheme}://"
