"""Every table, from `tables.yaml`: schemas, comments in the database, results/README.md.

A column is described once, in `columns`; a table's own words go before that. A column that is not
there and ends in _low or _high is an end of the 95 % band of the column without it.
"""

from collections.abc import Iterator
from functools import cache

import pyarrow as pa

from vecsweep import Problem
from vecsweep.files import PACKAGE, leads, packaged, read_table, write_table, write_tables

# Type of tables.yaml -> (pyarrow's, DuckDB's).
TYPES = {
    "text": (pa.string(), "VARCHAR"),
    "bool": (pa.bool_(), "BOOLEAN"),
    "int8": (pa.int8(), "TINYINT"),
    "int16": (pa.int16(), "SMALLINT"),
    "int32": (pa.int32(), "INTEGER"),
    "int64": (pa.int64(), "BIGINT"),
    "float": (pa.float32(), "FLOAT"),
    "double": (pa.float64(), "DOUBLE"),
}
LIST = "list of "
ROW_GROUP = 131_072  # rows, at least, that are written together: DuckDB's own measure is near it
BAND = {"_low": "Lower", "_high": "Upper"}
FORMS = {
    "table": "table",
    "view": "view",
    "csv": "view, also `tables/{name}.csv`",
}


@cache
def dictionary() -> dict:
    """tables.yaml, each table's `columns` as {name: {type, unit, meaning, values}}."""
    content = packaged(PACKAGE / "tables.yaml")
    for tables in (content["files"], content["tables"]):
        for table in tables.values():
            table["columns"] = dict(
                _column(entry, content["columns"]) for entry in table["columns"]
            )
    return content


def _column(entry, known: dict) -> tuple[str, dict]:
    name, own = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
    found = known.get(name, {})
    base, _, end = name.rpartition("_")
    if not found and f"_{end}" in BAND and base in known:
        found = known[base] | {"meaning": f"{BAND[f'_{end}']} end of the 95 % band of {base}."}
    return name, {"unit": "", "values": {}} | found | own


def arrow_type(kind: str) -> pa.DataType:
    """The pyarrow type of a type of tables.yaml, e.g. `list of int32`."""
    inner = TYPES[kind.removeprefix(LIST)][0]
    return pa.list_(inner) if kind.startswith(LIST) else inner


def database_type(kind: str) -> str:
    """The DuckDB type of a type of tables.yaml."""
    return TYPES[kind.removeprefix(LIST)][1] + "[]" * kind.startswith(LIST)


def schema(name: str) -> pa.Schema:
    """The columns of a Parquet table."""
    columns = dictionary()["files"][name]["columns"]
    return pa.schema({column: arrow_type(about["type"]) for column, about in columns.items()})


def write(name: str, rows: list[dict] | pa.Table, path, notes: dict | None = None) -> None:
    """Write a Parquet table; ValueError if rows have not its columns, or another type of value.

    Of processes that share a model one writes; where there was nothing to do none has an engine.
    """
    if leads():
        write_table(_table(name, rows), path, notes)


def write_parts(name: str, parts: Iterator[pa.Table], path, notes: dict | None = None) -> None:
    """Write a Parquet table as `write` does, of parts as they come, about ROW_GROUP rows at a time."""
    write_tables(_gathered(_table(name, part) for part in parts), schema(name), path, notes)


def _gathered(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables: readers lose time over each."""
    some: list[pa.Table] = []
    for part in parts:
        some.append(part)
        if sum(map(len, some)) >= ROW_GROUP:
            yield pa.concat_tables(some)
            some = []
    if some:
        yield pa.concat_tables(some)


def _table(name: str, rows: list[dict] | pa.Table) -> pa.Table:
    wanted = schema(name)
    arrow = isinstance(rows, pa.Table)
    for names in [set(rows.column_names)] if arrow else map(set, rows):
        if names != set(wanted.names):
            odd = ", ".join(sorted(names ^ set(wanted.names)))
            raise ValueError(f"table {name}: columns missing or not described: {odd}")
    columns = []
    for field in wanted:
        try:
            values = rows[field.name] if arrow else [row[field.name] for row in rows]
            columns.append(_cast(values, field.type) if arrow else _array(values, field.type))
        except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
            raise ValueError(f"table {name}, column {field.name}: {error}") from error
    return pa.table(columns, schema=wanted)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """A column that has the wanted type, or no values."""
    if column.type != wanted and not pa.types.is_null(column.type):
        raise TypeError(f"{column.type} is not {wanted}")
    return column.cast(wanted)


def _array(values: list, wanted: pa.DataType) -> pa.Array:
    """Values as the wanted type; pyarrow alone would cut 1.5 to an integer."""
    number, found = wanted, pa.array(values).type
    if pa.types.is_list(number) and pa.types.is_list(found):
        number, found = number.value_type, found.value_type
    if pa.types.is_integer(number) and pa.types.is_floating(found):
        raise TypeError(f"{found} is not {number}")
    return pa.array(values, wanted)


def read(name: str, path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet table, or some of its columns; Problem if the file's are others."""
    wanted = schema(name)
    wanted = pa.schema([wanted.field(column) for column in columns or wanted.names])
    table = read_table(path, columns=columns)
    odd = sorted(set(table.column_names) ^ set(wanted.names))
    try:
        if not odd:
            return table.select(wanted.names).cast(wanted)
    except pa.ArrowException as error:
        odd = [str(error)]
    raise Problem(
        f"{path} has other columns than table {name} ({', '.join(odd)}); delete it and run again"
    )


def in_database(connection) -> dict[str, tuple[str, dict[str, str]]]:
    """Table or view -> ("TABLE" or "VIEW", {column: type}) of the database that is in use."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    query = """SELECT table_name, if(v.view_name IS NULL, 'TABLE', 'VIEW'), column_name, data_type
               FROM duckdb_columns() AS c
               LEFT JOIN duckdb_views() AS v
                   ON (c.database_name, c.schema_name, table_name)
                    = (v.database_name, v.schema_name, view_name)
               WHERE NOT c.internal AND c.database_name = current_database()
               ORDER BY table_name, column_index"""
    for table, form, column, kind in connection.execute(query).fetchall():
        found.setdefault(table, (form, {}))[1][column] = kind
    return found


def comment_on(connection) -> None:
    """Comments on every described table, view and column that the database has."""
    statements = []
    for table, (form, columns) in in_database(connection).items():
        about = dictionary()["tables"].get(table)
        if about is None:
            continue
        lines = f"{about['meaning']} A row: {about['row']}."
        statements.append(f"COMMENT ON {form} {_quoted(table)} IS {_literal(lines)};")
        for column in columns.keys() & about["columns"].keys():
            place = f"{_quoted(table)}.{_quoted(column)}"
            text = _literal(_said(about["columns"][column]))
            statements.append(f"COMMENT ON COLUMN {place} IS {text};")
    connection.execute("\n".join(["BEGIN;", *statements, "COMMIT;"]))


def undescribed(connection) -> list[str]:
    """Tables, and table.column, that are in the database and not in tables.yaml."""
    known = dictionary()["tables"]
    found = []
    for table, (_, columns) in in_database(connection).items():
        if table not in known:
            found.append(table)
            continue
        found += [
            f"{table}.{column}" for column in columns if column not in known[table]["columns"]
        ]
    return found


def _quoted(name: str) -> str:
    return f'"{name}"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _said(column: dict) -> str:
    """Meaning, unit and values of a column, as one line."""
    text = column["meaning"]
    if column["values"]:
        text += (
            " " + "; ".join(f"{value}: {said}" for value, said in column["values"].items()) + "."
        )
    return text + (f" Unit: {column['unit']}." if column["unit"] else "")


HEAD = """\
# results

All that a run makes, described. Made by `vecsweep dictionary` from `workflow/vecsweep/tables.yaml`.

Layers count from 0; depth is (layer + 1) / layers. A rank is the number of tokens with a larger
logit: 0 is the top. Shares and reciprocal ranks lie between 0 and 1.
"""

# Run by the tests as they stand here.
EXAMPLES = """\
## How to open them

In Python: `duckdb.connect("results/summary.duckdb", read_only=True)`; or with DuckDB's own program,
which is not installed here: `duckdb results/summary.duckdb`. `SELECT column_name, comment FROM
duckdb_columns() WHERE table_name = 'lens'` says there what stands here.

From which depth on does the answer lead?

```sql
SELECT model, task, depth, low, high
FROM crossover_depths
WHERE prompt_set = 'abstractive'
ORDER BY depth
```

How does the answer come up, layer by layer, in prompts that are answered correctly?

```sql
SELECT model, task, layer, target, avg(reciprocal_rank) AS reciprocal_rank,
       avg((rank = 0)::INT) AS top_1
FROM lens JOIN prompts USING (model, task, prompt_set, prompt_id)
WHERE prompt_set = 'abstractive' AND site = 'resid_post' AND correct
GROUP BY ALL
ORDER BY ALL
```

What does each method do in novel contexts, and what does it carry over?

```sql
SELECT model, task, method, reciprocal_rank_before, reciprocal_rank_after,
       difference, difference_low, difference_high, p_holm, transfer
FROM methods
WHERE domain = 'in'
ORDER BY model, task, reciprocal_rank_after DESC
```

Tensors are safetensors; each one read this way is checked against its checksum:

```python
from vecsweep.files import Tensors
states = Tensors("results/states/gemma3-270m/capitals.safetensors")
updates = states["ffn_out.15"]  # [prompts, d_model], the FFN of layer 15
```
"""


def readme() -> str:
    """The text of results/README.md."""
    about = dictionary()
    parts = [
        HEAD,
        "## Folders\n",
        _grid(["in results/", "what"], _folders(about["folders"])),
        EXAMPLES,
    ]
    parts += [
        "## Index\n",
        _grid(["table of summary.duckdb", "what", "one row is"], _index(about["tables"])),
    ]
    parts += [_grid(["Parquet files", "what", "one row is"], _index(about["files"], "file-"))]
    tensors = [
        [f"[{n}](#tensors-{n})", one_line(t["meaning"])] for n, t in about["tensors"].items()
    ]
    parts += [_grid(["safetensors files", "what"], tensors)]
    parts += ["# Tables of summary.duckdb\n"]
    parts += [
        _section(name, name, FORMS[t["form"]].format(name=name), t)
        for name, t in about["tables"].items()
    ]
    parts += ["# Parquet files\n"]
    parts += [
        _section(f"file {name}", name, _paths(t["path"]), t) for name, t in about["files"].items()
    ]
    parts += ["# Tensors\n"]
    for name, file in about["tensors"].items():
        rows = [[f"`{n}`", f"[{t['shape']}]", t["meaning"]] for n, t in file["tensors"].items()]
        text = f"## tensors {name}\n\n{_paths(file['path'])}. {file['meaning']}\n"
        parts += [text, _grid(["tensor", "shape", "meaning"], rows)]
    return "\n".join(parts)


def one_line(text: str) -> str:
    """The first sentence of a text."""
    return text.split(". ")[0].rstrip(".") + "."


def _folders(folders: dict) -> list[list[str]]:
    return [[f"`{name}`" if "." in name else f"`{name}/`", what] for name, what in folders.items()]


def _index(tables: dict, prefix: str = "") -> list[list[str]]:
    return [
        [f"[{name}](#{prefix}{name})", one_line(table["meaning"]), table["row"]]
        for name, table in tables.items()
    ]


def _paths(text: str) -> str:
    return ", ".join(f"`{path}`" for path in text.split(", "))


def _section(heading: str, name: str, form: str, table: dict) -> str:
    """A table: what it is, and a line for each column; ends of a band stand with their column."""
    keys = ", ".join(f"`{column}`" for column in table["key"]) or "none"
    text = f"## {heading}\n\n{form}. {table['meaning']} One row: {table['row']}. Key: {keys}.\n"
    names = table["columns"]
    rows = []
    for column, about in names.items():
        if _is_band(column, names):
            continue
        bands = [f"{column}{end}" for end in BAND if _is_band(f"{column}{end}", names)]
        listed = "<br>".join(f"`{one}`" for one in [column, *bands])
        values = "".join(f"<br>`{value}`: {said}" for value, said in about["values"].items())
        meaning = about["meaning"] + " With the ends of its 95 % band." * bool(bands) + values
        rows.append([listed, about["type"], about["unit"], meaning.replace("|", "\\|")])
    return text + "\n" + _grid(["column", "type", "unit", "meaning"], rows)


def _is_band(column: str, names: dict) -> bool:
    base, _, end = column.rpartition("_")
    return f"_{end}" in BAND and base in names and column in names


def _grid(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
