"""Join the summaries of two or more sweeps: vecsweep merge A.duckdb B.duckdb --output C.duckdb.

The new database has the rows of all of them, with the same views, macros and comments. A model
and task that several have alike is kept once; what contradicts is refused, and nothing written.
A task is `injected` if it is in any. CSV tables and figures are not made.
"""

import os
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from vecsweep import Problem
from vecsweep.files import replacing
from vecsweep.stages.summary import FULL, check_written, counts, text, workplace

UNTYPED = '"NULL"'  # a column that is missing in all rows, as `revision` of local models is
OF_SWEEP = ("injected", "place")  # columns of `tasks` that are a sweep's, not the task's
AGAIN = "make the older summary again with the newer vecsweep"


def arguments(parser):
    parser.add_argument("databases", type=Path, nargs="+", help="summary.duckdb of each sweep")
    parser.add_argument("--output", type=Path, required=True, help="the database to write")


def run(args):
    """Check all, then write the merged database."""
    import duckdb

    paths = {os.path.realpath(path): path for path in args.databases}
    if len(args.databases) < 2 or len(paths) < len(args.databases):
        raise Problem("name two or more databases, each of them once")
    if os.path.realpath(args.output) in paths:
        raise Problem(f"--output {args.output} is one of the databases; give another path")
    with duckdb.connect() as connection:
        try:
            parts = attached(connection, args.databases)
            columns = common_columns(connection, parts)
            check_versions(connection, parts)
            check_rows(connection, parts, columns)
            with replacing(args.output) as temporary, workplace(args.output) as folder:
                connection.execute(f"SET temp_directory = {text(folder)}")
                connection.execute(f"ATTACH {text(f'{folder}/summary.duckdb')} AS merged")
                connection.execute("USE merged")
                for table in columns:
                    add_table(connection, parts, table, columns[table])
                add_definitions(connection, "part0")
                counted = counts(connection)
                # By itself DuckDB says nothing of a full disk when it closes a database.
                connection.execute("CHECKPOINT merged; USE memory; DETACH merged")
                check_written(Path(folder) / "summary.duckdb", counted)
                os.replace(f"{folder}/summary.duckdb", temporary)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if "Corrupt" in reason:
                path = next((path for path in args.databases if not readable(path)), "a database")
                raise Problem(f"{path} is damaged ({reason}); make it again") from error
            known = isinstance(error, (duckdb.IOException, duckdb.OutOfMemoryException))
            if not known and not any(words in reason for words in FULL):
                raise
            mend = "name databases of stage summary; free disk or memory"
            raise Problem(f"{reason}; {mend}") from error


def readable(path: Path) -> bool:
    """Whether all rows of a database can be read: DuckDB's error does not say of which it is."""
    import duckdb

    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            for table in counts(connection):
                connection.execute(f"SELECT sum(hash(t)) FROM {quoted(table)} AS t")
    except duckdb.Error:
        return False
    return True


def quoted(*names: str) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)


def attached(connection, paths: list[Path]) -> dict[str, Path]:
    """Attach the databases, which are only read: {name in SQL: path}."""
    parts = {f"part{number}": path for number, path in enumerate(paths)}
    for part, path in parts.items():
        connection.execute(f"ATTACH {text(path)} AS {part} (READ_ONLY)")
    return parts


def common_columns(connection, parts: dict[str, Path]) -> dict[str, dict[str, str]]:
    """{table: {column: type}}, the same in all databases; so must views and macros be."""
    found: dict = {}
    query = """SELECT table_name, column_name, data_type
               FROM duckdb_columns() SEMI JOIN duckdb_tables() USING (table_oid, database_name)
               WHERE database_name = ? ORDER BY table_name, column_index"""
    for part, path in parts.items():
        theirs = {(t, c): kind for t, c, kind in connection.execute(query, [part]).fetchall()}
        if not {"models", "runs", "tasks"} <= {table for table, _ in theirs}:
            raise Problem(f"{path} has no tables models, runs, tasks; name a database of summary")
        found = found or theirs
        for name in sorted({*found, *theirs}):
            kinds = {found.get(name), theirs.get(name)}
            if len(kinds) > 1 and (None in kinds or UNTYPED not in kinds):
                what = f"table {name[0]}, column {name[1]}"
                raise Problem(f"{what}: not alike in {parts['part0']} and {path}; {AGAIN}")
            found[name] = max(kinds - {UNTYPED}, default=UNTYPED)
        # By name: DuckDB words a view's SQL otherwise each time that it writes the file.
        if {*definitions(connection, part)} != {*definitions(connection, "part0")}:
            raise Problem(f"views or macros: not alike in {parts['part0']} and {path}; {AGAIN}")
    tables: dict = {}
    for (table, column), kind in found.items():
        tables.setdefault(table, {})[column] = kind
    return tables


def definitions(connection, part: str) -> dict[str, str]:
    """{name: SQL} of a database's macros and views."""
    query = """
        SELECT function_name, format('CREATE MACRO "{}"({}) AS {}{}', function_name,
               array_to_string(parameters, ', '),
               if(function_type = 'table_macro', 'TABLE ', ''), macro_definition)
        FROM duckdb_functions() WHERE database_name = $1 AND NOT internal
        UNION ALL
        SELECT view_name, sql FROM duckdb_views() WHERE database_name = $1 AND NOT internal
        ORDER BY ALL"""
    return dict(connection.execute(query, [part]).fetchall())


def check_versions(connection, parts: dict[str, Path]) -> None:
    """Refuse results of other code: vecsweep's version, and each stage's step version."""
    query = """
        SELECT what, string_agg(version, ', ' ORDER BY version)
        FROM (SELECT DISTINCT unnest(['vecsweep', 'stage ' || stage]) AS what,
                              unnest([vecsweep, step_version::VARCHAR]) AS version FROM {}.runs)
        GROUP BY what"""
    found = {part: dict(connection.execute(query.format(part)).fetchall()) for part in parts}
    for a, b in combinations(parts, 2):
        for what in sorted({*found[a]} & {*found[b]}):
            one, other = found[a][what], found[b][what]
            if one != other:
                where = f"version {one} in {parts[a]}, {other} in {parts[b]}"
                raise Problem(f"{what}: {where}; run the older sweep again with the newer code")


def keys(table: str, columns) -> list[str]:
    """The columns that name a cell of a table; none where the table is the same in all sweeps."""
    # What vectors of a task do to other tasks' prompts is a result of the vectors' task.
    task = "ovector_task" if "ovector_task" in columns else "task"
    stage = "stage" if table == "runs" else None
    if "model" not in columns:
        return ["task"] if table == "tasks" else []
    return [key for key in (stage, "model", task) if key in columns]


def check_rows(connection, parts: dict[str, Path], tables: dict) -> None:
    """Refuse one name for two models or tasks, and a cell that two databases have otherwise."""
    asked = {"models": ["revision", "sha256"]}
    asked["tasks"] = [column for column in tables["tasks"] if column not in OF_SWEEP]
    rest = [(table, [*tables[table]]) for table in tables if table not in {"tasks", "runs"}]
    for pair in combinations(parts, 2):
        for table, columns in [*asked.items(), *rest]:
            cell = keys(table, tables[table])
            found = differing(connection, pair, table, cell, columns)
            if found:
                named = ", ".join(f"{key} {value}" for key, value in zip(cell, found))
                what = f"table {table}: {named or 'its rows'}"
                what += f" ({', '.join(columns)})" if len(columns) < 4 else ""
                where = " and ".join(str(parts[part]) for part in pair)
                mend = "rename it or leave it out in one config, and run that sweep again"
                raise Problem(f"{what}: not alike in {where}; {mend if cell else AGAIN}")


def differing(connection, pair, table: str, cell: list[str], columns: list[str]):
    """The first cell that both have with other rows; None if there is none.

    Rows are counted and hashed inside DuckDB: lens and top_tokens may have 100 million.
    """
    chosen = quoted(*cell) or "1 AS all_rows"
    one, other = (
        f"""(SELECT {chosen}, [count(*), sum(hash({quoted(*columns)}))] AS content
             FROM {part}.{quoted(table)} GROUP BY ALL)"""
        for part in pair
    )
    query = f"""SELECT a.* FROM {one} AS a JOIN {other} AS b ON {same("a", "b", cell)}
                WHERE a.content IS DISTINCT FROM b.content ORDER BY ALL LIMIT 1"""
    return connection.execute(query).fetchone()


def same(a: str, b: str, cell: list[str]) -> str:
    """SQL: two rows are of one cell; a vocabulary's run has no task."""
    pairs = (f"{a}.{quoted(key)} IS NOT DISTINCT FROM {b}.{quoted(key)}" for key in cell)
    return " AND ".join(pairs) or "true"


def add_table(connection, parts, table: str, columns: dict[str, str]) -> None:
    """Make a table; each database adds the cells that those before it do not have."""
    name, cell = quoted(table), keys(table, columns)
    typed = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns.items())
    connection.execute(f"CREATE TABLE {name} ({typed})")
    # `runs` too: of a result that two sweeps have alike, the first one's run is told.
    have = f"(SELECT DISTINCT {quoted(*cell) or 1} FROM {name})"
    for part in parts if table != "tasks" else ():
        connection.execute(
            f"""INSERT INTO {name} SELECT {quoted(*columns)} FROM {part}.{name} AS new
                WHERE NOT EXISTS (FROM {have} AS have WHERE {same("new", "have", cell)})"""
        )
    if table == "tasks":
        add_tasks(connection, parts, columns)


def add_tasks(connection, parts, columns) -> None:
    """A row a task: in the first database's order, then what the next ones add."""
    place = "place" if "place" in columns else "rowid"
    rows = (
        f"SELECT *, [{number}, {place}] AS position FROM {part}.tasks"
        for number, part in enumerate(parts)
    )
    first = f"coalesce((SELECT min({place}) FROM part0.tasks), 0)"
    made = {
        "injected": "bool_or(injected)",
        "place": f"row_number() OVER (ORDER BY min(position)) - 1 + {first}",
    }
    values = ", ".join(made.get(column, f"any_value({quoted(column)})") for column in columns)
    connection.execute(
        f"""INSERT INTO tasks SELECT {values} FROM ({" UNION ALL BY NAME ".join(rows)})
            GROUP BY task ORDER BY min(position)"""
    )


def add_definitions(connection, part: str) -> None:
    """Macros, then views, one that reads another view after it; and all comments."""
    import duckdb

    waiting = [*definitions(connection, part).values()]
    while waiting:
        left = []
        for sql in waiting:
            try:
                connection.execute(sql)
            except (duckdb.CatalogException, duckdb.BinderException):
                left.append(sql)
        if left == waiting:
            raise Problem(f"cannot make again: {' '.join(left[0].split()[:3])}; {AGAIN}")
        waiting = left
    query = """
        SELECT 'TABLE' AS kind, [table_name] AS names, comment, database_name FROM duckdb_tables()
        UNION ALL SELECT 'VIEW', [view_name], comment, database_name FROM duckdb_views()
        UNION ALL SELECT 'MACRO', [function_name], comment, database_name FROM duckdb_functions()
        UNION ALL SELECT 'COLUMN', [table_name, column_name], comment, database_name
                  FROM duckdb_columns()"""
    query = f"SELECT * FROM ({query}) WHERE database_name = ? AND comment IS NOT NULL"
    for kind, names, comment, _ in connection.execute(query, [part]).fetchall():
        name = ".".join(map(quoted, names))
        # Of two columns of one name DuckDB lists the second as NAME_1, and does not find it.
        with suppress(duckdb.BinderException):
            connection.execute(f"COMMENT ON {kind} {name} IS {text(comment)}")
