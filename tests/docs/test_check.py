"""The doc tester itself: it must fail if a document is wrong. Runs on the server of tools/with-server.sh."""

import check
import pytest

GOOD = """# A document

```sql
SELECT 1 AS one;
```

```text
 one
-----
   1
(1 row)
```
"""


@pytest.fixture
def verdict(tmp_path, capsys):
    """A function that checks one document: the exit code and what was printed."""

    def judge(source: str) -> tuple[int, str]:
        (tmp_path / "README.md").write_text(source)
        code = check.main(tmp_path)
        return code, capsys.readouterr().out

    return judge


def test_a_document_that_is_right_passes(verdict):
    code, out = verdict(GOOD)
    assert code == 0
    assert out.endswith("examples: 1 passed, 0 failed, 0 skipped\n")


def test_other_output_fails_with_a_diff(verdict):
    code, out = verdict(GOOD.replace("   1\n", "   2\n"))
    assert code == 1
    assert "README.md:3: other output" in out
    assert "-   2\n+   1\n" in out


@pytest.mark.parametrize("source", ["", "# Nothing here\n", "```text\nSELECT 1;\n```\n"])
def test_no_example_fails(verdict, source):
    code, out = verdict(source)
    assert code == 1
    assert "no example was run" in out


@pytest.mark.parametrize("rest", ["```sql\nSELECT 2;\n", "<!-- sql\nSELECT 2;\n", "<!-- sql SELECT 2; -->\n", "````text\nx\n```\n"])
def test_a_block_without_an_end_fails(verdict, rest):
    code, out = verdict(GOOD + rest)
    assert code == 1
    assert "README.md:13: " in out


@pytest.mark.parametrize("statement", ["SELECT 1/0;", "SELECT totp_verify('a');\nSELECT 1;", "\\nonsense", "SELECT totp_enroll('a', digits => 9);"])
def test_a_block_without_output_must_succeed(verdict, statement):
    code, out = verdict(GOOD + f"```sql\n{statement}\n```\n")
    assert code == 1
    assert "README.md:13: failed" in out


def test_an_error_that_is_shown_is_expected(verdict):
    code, _ = verdict("```sql\nSELECT 1/0;\n```\n\n```text\nERROR:  division by zero\n```\n")
    assert code == 0


@pytest.mark.parametrize("hidden, code", [("SELECT 1;", 0), ("SELECT 1/0;", 1)])
def test_a_hidden_block_is_run(verdict, hidden, code):
    assert verdict(GOOD + f"<!-- sql\n{hidden}\n-->\n")[0] == code


@pytest.mark.parametrize("statement", ["SELECT 2", "SELECT 1;\nSELECT 2\n-- the end;"])
def test_a_statement_without_an_end_fails(verdict, statement):
    code, out = verdict(GOOD + f"```sql\n{statement}\n```\n")
    assert code == 1
    assert "has no end" in out


@pytest.mark.parametrize("statement", ["SELECT 2;  -- a comment", "SELECT 2; -- a\n-- b", "SELECT 2 AS two \\gset", "SELECT 1;\n\\echo x"])
def test_a_statement_with_an_end_passes(verdict, statement):
    assert verdict(GOOD + f"```sql\n{statement}\n```\n")[0] == 0


@pytest.mark.parametrize("pattern, code", [("…\n(1 row)", 0), (" o…\n…\n(1 row)", 0), ("…\n(2 rows)", 1), (" …x\n…", 1)])
def test_an_ellipsis_stands_for_text_and_for_lines(verdict, pattern, code):
    assert verdict(f"```sql\nSELECT 1 AS one;\n```\n\n```text\n{pattern}\n```\n")[0] == code


@pytest.mark.parametrize("call, code", [
    ("SELECT totp_verify(%s, %s)", 0),
    ("SELECT totp_verify($1, $2, device => $3)", 0),
    ("SELECT totp_verify(?, ?)", 0),
    ("SELECT totp_verify(:user, :code)", 0),
    ("SELECT totp_verify(${String(user.id)}, ${code})", 0),
    ("SELECT totp_verify(${code}, ${code}, ${code}, ${code})", 1),
    ("SELECT totp_verify(%s)", 1),
    ("SELECT totp_verfy(%s, %s)", 1),
    ("SELECT totp_verify(%s, %s, phone => %s)", 1),
])
def test_sql_in_other_languages_must_be_a_call_of_the_extension(verdict, call, code):
    source = f"```sql\nCREATE EXTENSION pg_totp;\n```\n\n```python\nrow = conn.execute(\"{call}\", arguments).fetchone()\n```\n"
    assert verdict(source)[0] == code


def test_a_block_that_calls_without_sql_fails(verdict):
    assert verdict(GOOD + "```python\ntotp_verify(user, code)\n```\n")[0] == 1


@pytest.mark.parametrize("prose, code", [
    ("[there](#a-document)", 0),
    ("[there](README.md#a-document)", 0),
    ("[there](https://example.com/)", 0),
    ("[nowhere](docs/none.md)", 1),
    ("[nowhere](#another)", 1),
    ("`tests/cluster/test_none.py::test_none`", 1),
])
def test_references_must_lead_somewhere(verdict, prose, code):
    assert verdict(GOOD + f"\nSee {prose}.\n")[0] == code


@pytest.mark.parametrize("needed, counts", [("plpgsql", "1 passed, 0 failed, 0 skipped"), ("no_such", "0 passed, 0 failed, 1 skipped")])
def test_a_document_that_needs_what_the_server_lacks_is_counted_as_skipped(verdict, needed, counts):
    code, out = verdict(f"<!-- needs {needed} -->\n{GOOD}")
    assert code == 0
    assert out.endswith(f"examples: {counts}\n")


def test_a_named_file_is_written_where_psql_finds_it(verdict):
    source = ("```csv file=people.csv\nalice,1\nbob,2\n```\n\n```sql\nCREATE TABLE people (name text, n int);\n"
              "\\copy people FROM 'people.csv' (FORMAT csv)\n```\n\n```text\nCREATE TABLE\nCOPY 2\n```\n")
    assert verdict(source)[0] == 0


def test_roles_and_settings_of_a_document_end_with_it(verdict):
    source = "```sql\nCREATE ROLE clerk;\nALTER SYSTEM SET work_mem = '5MB';\n```\n"
    assert verdict(source)[0] == 0
    assert verdict(source)[0] == 0
