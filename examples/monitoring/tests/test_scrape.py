"""A real server, read by each exporter, read by Prometheus, which evaluates the alerts."""

import re
import time
from contextlib import closing

import pytest
from exporters import EXAMPLE, ROLE, SQL_EXPORTER, Program, Prometheus, postgres_exporter, sql_exporter
from server import Cluster, Database
from totp import SECRET, code_at, wrong_code

EXPORTERS = [sql_exporter, postgres_exporter]
AT_ONCE = ((r"for: \w+", "for: 0s"),)


def make_database(cluster: Cluster, schema: str = "public") -> Database:
    """A database with the extension in that schema, a user in it, and the role of the exporters."""
    database = cluster.create_database(extension=False)
    database.psql(f"CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION pg_totp SCHEMA {schema}")
    database.psql((EXAMPLE / "role.sql").read_text())
    database.execute(f"SELECT {schema}.totp_import('alice', '{SECRET}', confirmed => true)")
    return database


def names_and_values(database: Database, schema: str = "public") -> dict[str, float]:
    """What totp_metrics() returns, a health check as totp_health{check}."""
    rows = database.execute(f"SELECT metric, value FROM {schema}.totp_metrics()")
    return {re.sub(r"^totp_health_(\w+)", r"totp_health{\1}", metric): value for metric, value in rows}


def in_prometheus(prometheus: Prometheus) -> dict[str, float]:
    """The same of what Prometheus has."""
    samples = prometheus.query('{__name__=~"totp_.+"}')
    return {labels["__name__"] + (f"{{{labels['check']}}}" if "check" in labels else ""): value for labels, value in samples}


@pytest.mark.parametrize(("exporter", "schema"), [(sql_exporter, "public"), (postgres_exporter, "mfa")])
def test_prometheus_has_each_metric_under_its_own_name(fresh_cluster, exporter, schema):
    database = make_database(fresh_cluster, schema)
    with closing(database.connect()) as conn:
        code = code_at(SECRET, time.time())
        for given in (code, code, wrong_code(code), wrong_code(wrong_code(code))):
            conn.execute(f"SELECT {schema}.totp_verify('alice', %s)", [given])
    expected = names_and_values(database, schema)
    assert expected["totp_codes_accepted_total"] + expected["totp_codes_replayed_total"] >= 1 and expected["totp_codes_wrong_total"] >= 1
    with exporter(database) as program, Prometheus(database, program.address) as prometheus:
        prometheus.wait_for(lambda: in_prometheus(prometheus), "to have metrics")
        found = in_prometheus(prometheus)
        in_rules = re.findall(r"\btotp_\w+", re.sub(r"(?m)^.*(#|summary:|runbook:).*$", "", (EXAMPLE / "totp-alerts.yml").read_text()))
        assert set(in_rules) - {name.partition("{")[0] for name in found} == set()
        assert abs(found.pop("totp_read_at_seconds") - time.time()) < 3600 and found.pop("totp_is_standby") == 0
        assert found.keys() == expected.keys()
        assert {name: value for name, value in found.items() if "age" not in name} == {
            name: value for name, value in expected.items() if "age" not in name}
        labels = set().union(*(labels for labels, _ in prometheus.query('{__name__=~"totp_.+"}')))
        assert labels == {"__name__", "check", "cluster", "database", "instance", "job"} | ({"server"} if exporter is postgres_exporter else set())


def test_postgres_exporter_says_what_is_a_counter(fresh_cluster):
    database = make_database(fresh_cluster)
    with postgres_exporter(database) as program:
        text = program.get("/metrics")
    assert "# TYPE totp_counter_value counter\n" in text and "# TYPE totp_gauge_value gauge\n" in text
    kinds = dict(re.findall(r'^totp_(counter|gauge)_value\{.*metric="(\w+)".*\} ', text, re.M))
    assert kinds.keys() == {"counter", "gauge"}
    for kind, metric in re.findall(r'^totp_(counter|gauge)_value\{.*metric="(\w+)".*\} ', text, re.M):
        assert (kind == "counter") == metric.endswith("_total")


def test_the_role_is_made_once_for_all_databases_of_a_cluster(fresh_cluster):
    """role.sql runs in each of them, and again in one of them, without an error."""
    schemas = {make_database(fresh_cluster, schema): schema for schema in ("public", "mfa")}
    for database in (*schemas, *schemas):
        database.psql((EXAMPLE / "role.sql").read_text())
    for database in schemas:
        assert int(database.psql("SELECT count(*) FROM totp_metrics()", user=ROLE)) > 0


def test_the_role_can_read_the_metrics_and_nothing_else(fresh_cluster):
    database = make_database(fresh_cluster)
    routines = """SELECT proname FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
                    JOIN pg_extension e ON e.oid = d.refobjid AND extname = 'pg_totp' WHERE has_function_privilege(%s, p.oid, 'EXECUTE')"""
    assert database.execute(routines, [ROLE]) == [("totp_metrics",)]
    assert not database.value("SELECT has_schema_privilege(%s, 'totp', 'USAGE')", [ROLE])
    tables = """SELECT bool_or(has_any_column_privilege(%s, oid, 'SELECT, INSERT, UPDATE')) FROM pg_class
                 WHERE relnamespace = 'totp'::regnamespace AND relkind = 'r'"""
    assert database.value(tables, [ROLE]) is False
    assert database.execute("SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = %s", [ROLE]) == [(False,) * 3]
    assert database.value("SELECT count(*) FROM pg_auth_members WHERE member = %s::regrole", [ROLE]) == 0


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_key_file_that_is_lost_fires_and_ends_when_it_is_back(fresh_cluster, exporter):
    """The server restarts without its key file, then with another key in it, then with its own."""
    database = make_database(fresh_cluster)
    own = fresh_cluster.key_file.read_text()
    with exporter(database) as program, Prometheus(database, program.address, rules=AT_ONCE) as prometheus:
        wait_for_alerts(prometheus, set())

        fresh_cluster.stop()
        fresh_cluster.run("rm", fresh_cluster.key_file)
        fresh_cluster.start()
        wait_for_alerts(prometheus, {"TotpNoMasterKey", "TotpMasterKeyLost"})

        fresh_cluster.write_key_file("0f" * 32 + "\n")
        fresh_cluster.restart()
        wait_for_alerts(prometheus, {"TotpMasterKeyLost"})

        fresh_cluster.write_key_file(own)
        fresh_cluster.restart()
        wait_for_alerts(prometheus, set())


def test_a_key_file_that_is_removed_under_running_sessions_fires(fresh_cluster):
    """The session of the exporter still has the key, as those of the application do. New ones would not. Postgres_exporter
    keeps its session."""
    database = make_database(fresh_cluster)
    with postgres_exporter(database) as program, Prometheus(database, program.address, rules=AT_ONCE) as prometheus:
        wait_for_alerts(prometheus, set())
        fresh_cluster.run("rm", fresh_cluster.key_file)
        prometheus.wait_for(lambda: "TotpNoMasterKey" in prometheus.firing(), "to alert")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_silence_fires(fresh_cluster, exporter):
    """A query that fails, a server that is gone, an exporter that is gone. Sql_exporter goes on to show what it read last."""
    database = make_database(fresh_cluster)
    with Prometheus(database, exporter(database).address, rules=(*AT_ONCE, ("> 300", "> 15"))) as prometheus:
        with exporter(database):
            wait_for_alerts(prometheus, set())
            database.execute(f"REVOKE EXECUTE ON FUNCTION totp_metrics() FROM {ROLE}")
            wait_for_alerts(prometheus, {"TotpMetricsMissing"})
            database.execute(f"GRANT EXECUTE ON FUNCTION totp_metrics() TO {ROLE}")
            wait_for_alerts(prometheus, set())
            fresh_cluster.stop()
            # Postgres_exporter tries for some seconds, which is more than the time that Prometheus gives it here.
            prometheus.wait_for(lambda: prometheus.firing() in ({"TotpMetricsMissing"}, {"TotpExporterDown"}), "to alert")
        prometheus.wait_for(lambda: "TotpExporterDown" in prometheus.firing(), "to alert")


def test_one_server_of_two_that_is_gone_when_sql_exporter_restarts_fires(fresh_cluster):
    """It exports nothing of that one then, and answers. Two databases stand for two servers."""
    database, other = make_database(fresh_cluster), make_database(fresh_cluster)
    with Prometheus(database, SQL_EXPORTER, rules=AT_ONCE) as prometheus:
        with sql_exporter(database, other):
            prometheus.wait_for(lambda: len(prometheus.query("totp_read_at_seconds")) == 2, "to see both")
            wait_for_alerts(prometheus, set())
        database.execute(f"ALTER DATABASE {other.name} ALLOW_CONNECTIONS false")
        with sql_exporter(database, other):
            wait_for_alerts(prometheus, {"TotpMetricsMissing"})
            [[labels, _]] = prometheus.query('ALERTS{alertname="TotpMetricsMissing"}')
            assert labels["database"] == other.name
            [[labels, _]] = prometheus.query("totp_read_at_seconds")
            assert labels["database"] == database.name and {value for _, value in prometheus.query('up{job="totp"}')} == {1}
            database.execute(f"ALTER DATABASE {other.name} ALLOW_CONNECTIONS true")
            wait_for_alerts(prometheus, set())


def test_a_health_check_that_fails_fires_under_its_name(fresh_cluster):
    database = make_database(fresh_cluster)
    with sql_exporter(database) as program, Prometheus(database, program.address, rules=AT_ONCE) as prometheus:
        wait_for_alerts(prometheus, set())
        database.execute("GRANT SELECT ON totp.secrets TO PUBLIC")
        wait_for_alerts(prometheus, {"TotpHealthFails"})
        assert [labels["check"] for labels, _ in prometheus.query('ALERTS{alertname="TotpHealthFails"}')] == ["rights"]


def test_a_standby_is_read_and_its_promotion_beside_a_primary_fires(fresh_cluster, make_standby):
    database = make_database(fresh_cluster)
    standby = make_standby(fresh_cluster)
    standby.wait_for_replay(fresh_cluster)
    copy = Database(standby, database.name)
    with sql_exporter(database) as one, postgres_exporter(copy) as other, \
            Prometheus(database, one.address, other.address, rules=AT_ONCE) as prometheus:
        wait_for_alerts(prometheus, set())
        prometheus.wait_for(lambda: sorted(value for _, value in prometheus.query("totp_is_standby")) == [0, 1], "to see the standby")
        standby.promote()
        wait_for_alerts(prometheus, {"TotpPromoted", "TotpTwoPrimaries"})


def wait_for_alerts(prometheus: Prometheus, names: set[str]) -> None:
    """Wait until these alerts fire, and no other one, on what is scraped from now on."""
    prometheus.wait_for_evaluation()
    prometheus.wait_for(lambda: prometheus.firing() == names, f"to fire {sorted(names)}, and nothing else")
