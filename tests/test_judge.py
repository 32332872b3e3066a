"""What the judge says of a statement, against what SQLite itself does with it on a scratch file."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from litefs_django._litefs.judge import UNSAFE_PRAGMAS, Kind, Pragma, explains_write, judge, parse_pragma


def verdict(sql: str, connection: sqlite3.Connection) -> Kind:
    """What the statement is taken for on the primary, as the guard settles it."""
    kind = judge(sql)
    if kind is Kind.PRAGMA:
        pragma = parse_pragma(sql)
        return Kind.WRITE if pragma is not None and (pragma.is_unsafe or pragma.writes) else Kind.READ
    if kind is None:
        try:
            return Kind.WRITE if explains_write(connection.execute(f"EXPLAIN {sql}")) else Kind.READ
        except sqlite3.Error:
            return Kind.WRITE
    return kind


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1", Kind.READ),
        ("  select 1", Kind.READ),
        ("VALUES (1)", Kind.READ),
        ("INSERT INTO t VALUES (1)", Kind.DML),
        ("\n\t\f insert into t VALUES (1)", Kind.DML),
        ("-- SELECT\nINSERT INTO t VALUES (1)", Kind.DML),
        ("-- SELECT\r\n--\n/**/INSERT INTO t VALUES (1)", Kind.DML),
        ("/* SELECT */ INSERT INTO t VALUES (1)", Kind.DML),
        ("/* /* SELECT */ INSERT INTO t VALUES (1)", Kind.DML),
        ("/*/ SELECT */ INSERT INTO t VALUES (1)", Kind.DML),
        ("/* a */ -- b */\n INSERT INTO t VALUES (1)", Kind.DML),
        (";; INSERT INTO t VALUES (1)", Kind.DML),
        ("\ufeffINSERT INTO t VALUES (1)", Kind.DML),
        ("REPLACE INTO t VALUES (1)", Kind.DML),
        ("UPDATE t SET x = 1", Kind.DML),
        ("DELETE FROM t", Kind.DML),
        ("CREATE TEMP TABLE t (x)", Kind.WRITE),
        ("DROP TABLE t", Kind.WRITE),
        ("ALTER TABLE t RENAME TO u", Kind.WRITE),
        ("ANALYZE", Kind.WRITE),
        ("REINDEX", Kind.WRITE),
        ("VACUUM", Kind.WRITE),
        ("VACUUM main", Kind.WRITE),
        ("VACUUM -- INTO", Kind.WRITE),
        ("VACUUM /* INTO */ main", Kind.WRITE),
        ("VACUUM INTO 'x'", Kind.VACUUM_INTO),
        ("vacuum main into ?", Kind.VACUUM_INTO),
        ("VACUUM/**/INTO/**/'x'", Kind.VACUUM_INTO),
        ("VACUUM -- all of it\n[main]INTO'x'", Kind.VACUUM_INTO),
        ('VACUUM "main" INTO ?', Kind.VACUUM_INTO),
        ("BEGIN", Kind.BEGIN),
        ("BEGIN DEFERRED TRANSACTION", Kind.BEGIN),
        ("BEGIN IMMEDIATE", Kind.BEGIN_WRITE),
        ("begin exclusive transaction", Kind.BEGIN_WRITE),
        ("BEGIN/* */IMMEDIATE", Kind.BEGIN_WRITE),
        ("BEGIN--\nIMMEDIATE", Kind.BEGIN_WRITE),
        (";BEGIN IMMEDIATE", Kind.BEGIN_WRITE),
        ("SAVEPOINT s", Kind.SAVEPOINT),
        ("RELEASE s", Kind.RELEASE),
        ("ROLLBACK TO s", Kind.ROLLBACK),
        ("ROLLBACK", Kind.ROLLBACK),
        ("COMMIT", Kind.COMMIT),
        ("END TRANSACTION", Kind.COMMIT),
        (";COMMIT", Kind.COMMIT),
        ("PRAGMA user_version", Kind.PRAGMA),
        ("EXPLAIN PRAGMA user_version = 1", Kind.PRAGMA),
        (";PRAGMA journal_mode = DELETE", Kind.PRAGMA),
        ("\ufeffPRAGMA journal_mode = DELETE", Kind.PRAGMA),
        ("WITH a AS (SELECT 1) SELECT * FROM a", None),
        ("", None),
        ("-- nothing", None),
        ("/* SELECT", None),
        ("nonsense", None),
    ],
)
def test_the_kind_of_a_statement(sql: str, kind: Kind | None) -> None:
    assert judge(sql) is kind


@pytest.mark.parametrize("blank", [" ", "\n", ";", "-- x\n", "/* x */", " \n\t", "/*", "--"])
def test_a_long_beginning_is_judged_in_linear_time(blank: str) -> None:
    started = time.thread_time()
    judge(blank * 50_000 + "(")
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("sql", "pragma"),
    [
        ("PRAGMA journal_mode = DELETE", Pragma("journal_mode", "DELETE", None)),
        ("pragma JOURNAL_MODE=delete;", Pragma("journal_mode", "delete", None)),
        ("PRAGMA journal_mode(delete)", Pragma("journal_mode", "delete", None)),
        ("PRAGMA main.journal_mode = 'delete'", Pragma("journal_mode", "delete", "main")),
        ('PRAGMA [main] . "journal_mode" = `delete`', Pragma("journal_mode", "delete", "main")),
        ("/* x */PRAGMA/* y */journal_mode--\n=delete", Pragma("journal_mode", "delete", None)),
        ("EXPLAIN PRAGMA journal_mode = DELETE", Pragma("journal_mode", "DELETE", None)),
        ("EXPLAIN QUERY PLAN PRAGMA journal_mode = DELETE", Pragma("journal_mode", "DELETE", None)),
        ("EXPLAIN/**/PRAGMA journal_mode = DELETE", Pragma("journal_mode", "DELETE", None)),
        ("PRAGMA cache_size = -2000", Pragma("cache_size", "-2000", None)),
        ("PRAGMA user_version", Pragma("user_version", None, None)),
        ("EXPLAIN SELECT 1", None),
        ("EXPLAIN QUERY PLAN SELECT * FROM absent", None),
        ("EXPLAIN INSERT INTO absent VALUES ('PRAGMA journal_mode = DELETE')", None),
        ("PRAGMA", None),
        ("EXPLAIN", None),
    ],
)
def test_a_pragma_is_read_as_sqlite_reads_it(sql: str, pragma: Pragma | None) -> None:
    assert parse_pragma(sql) == pragma


@pytest.mark.parametrize("name", sorted(UNSAFE_PRAGMAS))
def test_a_pragma_of_an_attached_database_is_read_as_sqlite_reads_it(name: str) -> None:
    for sql in (f"PRAGMA other.{name} = 1", f'PRAGMA "other"."{name.upper()}"(1)', f"EXPLAIN PRAGMA other.{name}=1"):
        pragma = parse_pragma(sql)
        assert pragma == Pragma(name, "1", "other")
        assert pragma.is_unsafe
    assert parse_pragma(f"PRAGMA [an other].{name}") == Pragma(name, None, "an other")


# Against SQLite: each statement runs on a copy of one small database.

TABLES = """
CREATE TABLE t (x INTEGER PRIMARY KEY, y);
CREATE TABLE log (y);
CREATE INDEX by_y ON t (y);
CREATE VIEW v AS SELECT * FROM t;
CREATE TRIGGER on_v INSTEAD OF INSERT ON v BEGIN INSERT INTO log VALUES (new.y); END;
CREATE VIRTUAL TABLE words USING fts5 (word);
INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three');
INSERT INTO words VALUES ('sea'), ('sky');
DELETE FROM t WHERE x = 2;
ANALYZE;
"""

STATEMENTS = [
    "SELECT * FROM t",
    "SELECT * FROM t WHERE EXISTS ( SELECT 1 FROM log ) UNION ALL SELECT 1 , 2",
    "SELECT * FROM words WHERE words MATCH 'sea'",
    "SELECT * FROM pragma_table_info ( 't' )",
    "SELECT * FROM pragma_user_version",
    "VALUES ( 1 ) , ( 2 )",
    "WITH a AS ( SELECT 1 ) SELECT * FROM a",
    "WITH RECURSIVE n ( x ) AS ( VALUES ( 1 ) UNION ALL SELECT x + 1 FROM n LIMIT 9 ) SELECT * FROM n",
    "WITH a ( y ) AS ( VALUES ( 'new' ) ) INSERT INTO t ( y ) SELECT y FROM a",
    "WITH a AS ( SELECT 1 ) UPDATE t SET y = 'new' WHERE x IN a",
    "WITH a AS ( SELECT 1 ) DELETE FROM t WHERE x IN a",
    "WITH a AS ( SELECT 1 ) REPLACE INTO t SELECT 1 , 'new' FROM a",
    "WITH a AS ( SELECT 1 ) DELETE FROM t WHERE x IN a RETURNING *",
    "INSERT INTO t ( y ) VALUES ( 'new' )",
    "INSERT INTO t ( y ) VALUES ( 'new' ) RETURNING x",
    "INSERT INTO v VALUES ( 9 , 'new' )",
    "INSERT OR IGNORE INTO t VALUES ( 1 , 'new' )",
    "INSERT INTO words ( words ) VALUES ( 'optimize' )",
    "INSERT INTO words ( words ) VALUES ( 'rebuild' )",
    "REPLACE INTO t VALUES ( 1 , 'new' )",
    "UPDATE t SET y = 'new'",
    "UPDATE t SET y = 'new' WHERE x = 1 RETURNING *",
    "DELETE FROM t",
    "CREATE TABLE u ( x )",
    "CREATE TABLE u AS SELECT * FROM t",
    "CREATE TEMP TABLE u AS SELECT * FROM t",
    "CREATE UNIQUE INDEX u ON t ( x )",
    "CREATE VIEW u AS SELECT 1",
    "CREATE TRIGGER u AFTER INSERT ON t BEGIN DELETE FROM log ; END",
    "CREATE VIRTUAL TABLE u USING fts5 ( x )",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t ADD COLUMN z DEFAULT 1",
    "ALTER TABLE log RENAME COLUMN y TO z",
    "DROP TABLE t",
    "DROP INDEX by_y",
    "DROP VIEW v",
    "REINDEX",
    "REINDEX by_y",
    "ANALYZE",
    "ANALYZE t",
    "VACUUM",
    "VACUUM main",
    "SAVEPOINT s",
    "BEGIN",
    "BEGIN DEFERRED",
    "BEGIN IMMEDIATE",
    "BEGIN EXCLUSIVE TRANSACTION",
    "ATTACH ':memory:' AS other",
    "EXPLAIN SELECT * FROM t",
    "EXPLAIN DELETE FROM t",
    "EXPLAIN QUERY PLAN DELETE FROM t",
    "EXPLAIN VACUUM",
    "EXPLAIN COMMIT",
]

# What ends a transaction that has inserted a row; {prelude} begins it.
ENDS = [
    ("BEGIN", "COMMIT"),
    ("BEGIN", "END"),
    ("BEGIN", "END TRANSACTION"),
    ("BEGIN IMMEDIATE", "COMMIT TRANSACTION"),
    ("SAVEPOINT s", "RELEASE s"),
    ("SAVEPOINT s", "RELEASE SAVEPOINT s"),
    ("SAVEPOINT s", "COMMIT"),
    ("BEGIN", "ROLLBACK"),
    ("BEGIN", "ROLLBACK TRANSACTION"),
]

PRAGMA_VALUES = [
    "0",
    "1",
    "2",
    "7",
    "-1",
    "512",
    "ON",
    "FULL",
    "DELETE",
    "OFF",
    "TRUNCATE",
    "EXCLUSIVE",
    "UTF16",
    "t",
    "0x10002",
]


# They change SQLite for the whole process.
PROCESS_WIDE = {"hard_heap_limit", "soft_heap_limit", "temp_store_directory", "threads"}


def pragma_names() -> list[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        return sorted({name for (name,) in connection.execute("PRAGMA pragma_list")} - PROCESS_WIDE)


BLANKS = [" ", "\n", "\t", "\f", "\r\n", " -- INTO SELECT;\n", "/* INTO 'x' */", "/* /* SELECT */", "/**/", "/*/ ; */"]
blanks = st.lists(st.sampled_from(BLANKS), min_size=1, max_size=3).map("".join)
beginnings = st.lists(st.sampled_from([*BLANKS, ";", "\ufeff"]), max_size=4).map("".join)
ends = st.lists(st.sampled_from([*BLANKS, ";"]), max_size=2).map("".join)


@st.composite
def spelled(draw: st.DrawFn, statement: str) -> str:
    """The statement, its words in any case with anything blank around them; what is quoted stays."""
    words = [
        word if word[0] in "'\"[`" else draw(st.sampled_from([word, word.lower(), word.upper(), word.title()]))
        for word in statement.split(" ")
    ]
    sql = draw(beginnings) + words[0]
    for word in words[1:]:
        sql += draw(blanks) + word
    return sql + draw(ends)


@st.composite
def pragmas(draw: st.DrawFn) -> str:
    quoted = st.sampled_from(["{}", '"{}"', "[{}]", "`{}`", "'{}'"])
    name = draw(quoted).format(draw(st.sampled_from(pragma_names())))
    words = [*draw(st.sampled_from([[], [], ["EXPLAIN"], ["EXPLAIN", "QUERY", "PLAN"]])), "PRAGMA"]
    if draw(st.booleans()):
        words += [draw(quoted).format("main"), "."]
    words.append(name)
    value = draw(quoted).format(draw(st.sampled_from(PRAGMA_VALUES)))
    words += draw(st.sampled_from([[], ["=", value], ["(", value, ")"]]))
    return draw(spelled(" ".join(words)))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in rollback mode: what is committed stands in the file itself."""
    path = tmp_path_factory.mktemp("judge") / "original"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES)
    return path


def copies(original: Path) -> Iterator[Path]:
    copy = original.with_name("copy")
    shutil.copy(original, copy)
    yield copy
    for leftover in original.parent.glob("copy*"):
        leftover.unlink()


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def run(connection: sqlite3.Connection, sql: str) -> bool:
    try:
        connection.execute(sql).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        return False
    return True


def can_be_written(path: Path) -> bool:
    with closing(connect(path)) as other:
        return run(other, "BEGIN IMMEDIATE")


HEALTH = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HEALTH
@given(sql=st.sampled_from(STATEMENTS).flatmap(spelled) | pragmas())
@example(sql=";PRAGMA user_version = 7")
@example(sql="\ufeffPRAGMA user_version = 7")
@example(sql="EXPLAIN PRAGMA user_version = 7")
@example(sql="PRAGMA optimize(0x10002)")
@example(sql="BEGIN/**/IMMEDIATE")
@example(sql="VACUUM /* INTO 'x' */")
def test_whatever_changes_the_file_is_judged_a_write(original: Path, sql: str) -> None:
    for path in copies(original):
        with closing(connect(path)) as connection:
            kind = verdict(sql, connection)
            before = path.read_bytes()
            run(connection, sql)
            if connection.in_transaction:
                assert kind in (Kind.BEGIN, Kind.BEGIN_WRITE, Kind.SAVEPOINT)
                assert can_be_written(path) == (kind is not Kind.BEGIN_WRITE)
        if path.read_bytes() != before:
            assert kind in (Kind.WRITE, Kind.DML)


@HEALTH
@given(data=st.data(), case=st.sampled_from(ENDS))
def test_whatever_ends_a_transaction_is_judged_so(original: Path, data: st.DataObject, case: tuple[str, str]) -> None:
    begin, end = case
    sql = data.draw(spelled(end))
    for path in copies(original):
        with closing(connect(path)) as connection:
            connection.execute(begin)
            connection.execute("INSERT INTO t (y) VALUES ('new')")
            before = path.read_bytes()
            if not run(connection, sql):
                # Python refuses 'COMMIT;;'.
                assert connection.in_transaction
                continue
            assert not connection.in_transaction
            is_committed = path.read_bytes() != before
        assert (judge(sql) in (Kind.COMMIT, Kind.RELEASE)) == is_committed
        assert is_committed or judge(sql) is Kind.ROLLBACK


@pytest.mark.parametrize(
    "sql", [sql for sql in STATEMENTS if re.match("SELECT|VALUES|WITH .*SELECT [*] FROM [an]$", sql)]
)
def test_what_only_reads_is_judged_a_read(original: Path, sql: str) -> None:
    with closing(connect(original)) as connection:
        assert verdict(sql, connection) is Kind.READ


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA user_version",
        "PRAGMA table_info(t)",
        "PRAGMA foreign_keys = ON",
        "PRAGMA synchronous = NORMAL",
        "PRAGMA cache_size = -2000",
        "PRAGMA busy_timeout = 5000",
        "PRAGMA journal_mode",
        "PRAGMA integrity_check",
        "PRAGMA foreign_key_check",
        "EXPLAIN QUERY PLAN DELETE FROM t",
    ],
)
def test_what_every_project_runs_takes_no_turn(original: Path, sql: str) -> None:
    with closing(connect(original)) as connection:
        assert verdict(sql, connection) is Kind.READ


def test_a_write_into_a_temporary_table_of_a_real_one_s_name_is_a_write(original: Path) -> None:
    sql = "WITH a AS (SELECT 1) DELETE FROM t WHERE x IN a"
    with closing(connect(original)) as connection:
        connection.execute("CREATE TEMP TABLE t (x)")
        # The answer is kept by SQL text, and serves connections without that temporary table too.
        assert verdict(sql, connection) is Kind.WRITE
