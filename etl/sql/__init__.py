"""The queries of the index, one a file; its first lines say what goes in, and what one row of the result is."""

from __future__ import annotations

from importlib import resources
from typing import Any

import duckdb


def read_sql(name: str) -> str:
    """Return the text of `etl/sql/<name>.sql`."""
    return resources.files("etl").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def read_query(con: duckdb.DuckDBPyConnection, name: str, **params: Any) -> duckdb.DuckDBPyRelation:
    """Run `etl/sql/<name>.sql`."""
    query = read_sql(name)
    return con.sql(query, params=params) if params else con.sql(query)
