"""The T-SQL in sql/azure_sql reads as T-SQL, names what there is, and says the same as SQLite's."""

import re
from importlib.resources import files

import pytest
import sqlfluff
from sqlfluff.api.simple import APIParsingError

from tests.conftest import ROOT
from vehclass.stores.azure_sql import RIGHTS, batches
from vehclass.stores.queries import migrations, named_queries

QUERIES = named_queries("azure_sql")
FOLDER = files("vehclass.sql") / "azure_sql"
OWN = {  # what SQLite does by PRAGMA, BEGIN and COMMIT
    *("schema_version", "missing_rights", "begin_transaction", "commit_transaction", "roll_back"),
    "lock_migration",
}


def script(name: str) -> str:
    """A named query as it is sent, with values in the place of markers."""
    declared = ", ".join(f"@{one} {kind} = NULL" for one, kind in QUERIES[name].parameters.items())
    return f"SET NOCOUNT ON;\n{f'DECLARE {declared};' if declared else ''}\n{QUERIES[name].text}\n"


def parses(text: str) -> bool:
    try:
        sqlfluff.parse(text, dialect="tsql")
    except APIParsingError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_query_parses(name: str) -> None:
    assert parses(script(name))


def test_migrations_and_grants_parse() -> None:
    texts = [text for _, _, text in migrations("azure_sql")]
    for text in (*texts, (FOLDER / "grants.sql").read_text()):
        for batch in batches(text):
            assert parses(batch), batch


def test_the_queries_in_the_docs_parse() -> None:
    page = (ROOT / "docs" / "stores.md").read_text(encoding="utf-8").partition("## Cosmos DB")[0]
    blocks = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert sum(block.count(";") for block in blocks) == 3
    assert all(parses(block) for block in blocks)


PLANTED = [
    ("save_images", "INNER JOIN dbo.[image] AS i WITH", "INNER JION dbo.[image] AS i WITH"),
    ("save_outcomes", "FROM @batch AS b\nWHERE NOT EXISTS", "FROM @batch AS b\nWHERE NOT NOT EXISTS ("),
    ("save_outcomes", "END;\n\nINSERT", "INSERT"),
    ("unseen", "ORDER BY p.position", "ORDER p.position"),
    ("run_summary", "GROUP BY t.name", "GROUP t.name"),
    ("take_lease", "VALUES (HASHBYTES", "VALUES HASHBYTES"),
    ("predictions_between", "OPTION (RECOMPILE)", "OPTION RECOMPILE"),
    ("renew_lease", "UPDATE dbo.lease SET", "UPDATE dbo.lease SETT"),
    ("end_run", "WHERE run_id", "WHERE WHERE run_id"),
    ("models", "INNER JOIN dbo.label AS l ON", "INNER JOIN dbo.label AS l ONN"),
]


def test_planted_errors_are_found() -> None:
    found = []
    for name, right, wrong in PLANTED:
        assert right in QUERIES[name].text, (name, right)
        found.append(not parses(script(name).replace(right, wrong, 1)))
    assert sum(found) >= 8, found  # of ten; what no parser finds, the names below and a server do


def columns() -> dict[str, set[str]]:
    """The columns of each table and view."""
    schema = "\n".join(text for _, _, text in migrations("azure_sql"))
    found = {
        name.strip("[]"): set(
            re.findall(r"^  (\w+) +(?:BIGINT|INT|N?VARCHAR|N?CHAR|DATETIME2|FLOAT|BIT|BINARY)", body, re.MULTILINE)
        )
        for name, body in re.findall(r"^CREATE TABLE dbo\.(\S+) \((.*?)\n\);", schema, re.DOTALL | re.MULTILINE)
    }
    found["schema_migration"] = {"version", "name", "applied_at"}
    return found


def test_each_migration_records_itself() -> None:
    """So that vehclass knows the tables that an administrator made by hand."""
    for number, name, text in migrations("azure_sql"):
        assert f"SELECT {number}, N'{name}', SYSUTCDATETIME()" in list(batches(text))[-1]


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_query_names_columns_and_parameters_that_exist(name: str) -> None:
    known, text = columns(), re.sub(r"--.*", "", QUERIES[name].text)
    assert len(known) == 13
    assert set(re.findall(r"dbo\.\[?(\w+)\]?", re.sub(r"N'[^']*'", "", text))) <= set(known)
    offered: dict[str, set[str]] = {}
    for table, alias in re.findall(r"dbo\.\[?(\w+)\]? AS (\w+)", text):
        offered.setdefault(alias, set()).update(known[table])
    for body, alias in re.findall(r"OPENJSON\(@\w+\) WITH \(([^;]*?)\) AS (\w+)", text, re.DOTALL):
        offered.setdefault(alias, set()).update(re.findall(r"(\w+) (?:BIGINT|INT|N?VARCHAR|N?CHAR|FLOAT|BIT)", body))
    for alias, there in offered.items():
        assert set(re.findall(rf"\b{alias}\.(\w+)", text)) <= there, alias
    own = set(re.findall(r"DECLARE @(\w+)", text))
    used = set(re.findall(r"(?<!@)@(\w+)", re.sub(r"(?<!@)@[A-Z]\w+ = ", "", text)))  # procedures' own are capitalised
    assert used - own == set(QUERIES[name].parameters)


def test_both_dialects_answer_to_the_same_names() -> None:
    assert set(QUERIES) - OWN == set(named_queries("sqlite"))


def test_the_grants_are_what_a_run_needs() -> None:
    granted = {
        table: tuple(rights.split(", "))
        for rights, table in re.findall(
            r"^GRANT (.*) ON dbo\.\[?(\w+)\]? TO \[vehclass-night\]", (FOLDER / "grants.sql").read_text(), re.MULTILINE
        )
    }
    assert granted.pop("schema_migration") == ("SELECT",)
    assert granted == RIGHTS


def test_nothing_loops_merges_or_reads_what_is_not_committed() -> None:
    text = re.sub(r"--.*", "", (FOLDER / "queries.sql").read_text()).upper()
    assert not re.search(r"\bMERGE\b|NOLOCK|CURSOR|WHILE", text)
