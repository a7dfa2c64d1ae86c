// JDBC reads every answer of the extension: the calls of tests/clients/calls.sql.
//
// tests/run-clients starts the server. Its clock stands still, and its time zone is not UTC.
// usage: java -cp postgresql.jar:CLASSES_OF_RELAY Drivers.java [PATTERN]    only the tests whose names contain it

import java.net.InetAddress;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.stream.Collectors;

class Drivers {
    record Call(String call, String[] args, String error, String statement, String[] columns, String[] types) {}

    interface Test {
        void run() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        int port = Relay.to(System.getenv("PGHOST") + "/.s.PGSQL." + System.getenv("PGPORT"));
        String url = "jdbc:postgresql://" + InetAddress.getLoopbackAddress().getHostAddress() + ":" + port + "/drivers?user=postgres";
        Map<String, Test> tests = new LinkedHashMap<>();
        tests.put("reads every answer in text", () -> readsEveryAnswer(url + "&binaryTransfer=false", "JDBC, text"));
        tests.put("reads every answer in binary", () -> readsEveryAnswer(url + "&prepareThreshold=-1", "JDBC, binary"));
        tests.put("reads every answer by the simple protocol", () -> readsEveryAnswer(url + "&preferQueryMode=simple", "JDBC, simple"));
        tests.put("would not read infinity", () -> wouldNotReadInfinity(url));
        tests.put("an id that is no text is an error", () -> anIdThatIsNoTextIsAnError(url));

        int passed = 0, failed = 0;
        for (Map.Entry<String, Test> test : tests.entrySet()) {
            if (args.length > 0 && !test.getKey().contains(args[0])) {
                continue;
            }
            try {
                test.getValue().run();
                System.out.printf("ok - %s%n", test.getKey());
                passed++;
            } catch (Exception | AssertionError error) {
                System.out.printf("not ok - %s%n%s%n", test.getKey(), error);
                failed++;
            }
        }
        System.out.printf("# pass %d%n# fail %d%n", passed, failed);
        System.exit(failed > 0 ? 1 : 0);
    }

    static void readsEveryAnswer(String url, String client) throws SQLException {
        List<String> problems = new ArrayList<>();
        try (Connection conn = DriverManager.getConnection(url)) {
            List<Call> calls = calls(conn, client);
            assertThat(!calls.isEmpty(), "there are no calls");
            for (Call call : calls) {
                try {
                    read(conn, call);
                    assertThat(call.error == null, "it does not raise " + call.error);
                } catch (SQLException error) {
                    if (!error.getSQLState().equals(call.error)) {
                        problems.add(call.call + ": " + error);
                    }
                } catch (RuntimeException | AssertionError error) {
                    problems.add(call.call + ": " + error);
                }
            }
        }
        assertThat(problems.isEmpty(), String.join("\n", problems));
    }

    static void wouldNotReadInfinity(String url) throws SQLException {
        Call infinity = new Call("", new String[0], null, "SELECT timestamptz 'infinity' AS retry_at, ARRAY['infinity'] AS expected",
                new String[] {"retry_at"}, new String[] {"timestamp with time zone"});
        try (Connection conn = DriverManager.getConnection(url)) {
            read(conn, infinity);
        } catch (RuntimeException expected) {
            return; // it is read as the year 999999999
        }
        throw new AssertionError("it reads infinity");
    }

    static void anIdThatIsNoTextIsAnError(String url) throws SQLException {
        for (Object id : List.of(42, 42L, new UUID(0, 42))) {
            try (var conn = DriverManager.getConnection(url); var query = conn.prepareStatement("SELECT totp_verify(?, '123456')")) {
                query.setObject(1, id);
                query.executeQuery();
                throw new AssertionError(id + " is taken");
            } catch (SQLException error) {
                assertThat(error.getSQLState().equals("42883"), error.toString());
            }
        }
    }

    static List<Call> calls(Connection conn, String client) throws SQLException {
        List<Call> calls = new ArrayList<>();
        try (var query = conn.prepareStatement("SELECT call, args, error, statement, columns, types FROM calls(?)")) {
            query.setString(1, client);
            ResultSet row = query.executeQuery();
            while (row.next()) {
                calls.add(new Call(row.getString(1), strings(row, 2), row.getString(3), row.getString(4), strings(row, 5), strings(row, 6)));
            }
        }
        return calls;
    }

    static void read(Connection conn, Call call) throws SQLException {
        try (var query = conn.prepareStatement(call.statement.replaceAll("\\$\\d", "?"))) {
            for (int n = 0; n < call.args.length; n++) {
                query.setString(n + 1, call.args[n]);
            }
            if (!query.execute()) {
                return;
            }
            ResultSet row = query.getResultSet();
            while (row.next()) {
                String[] expected = strings(row, call.columns.length + 1);
                for (int n = 0; n < expected.length; n++) {
                    String name = row.getMetaData().getColumnName(n + 1);
                    assertThat(name.equals(call.columns[n]), name);
                    assertThat(shows(row, n + 1, call.types[n], expected[n]), name + " is not " + expected[n]);
                }
            }
        }
    }

    /** Whether a column has its type and is what PostgreSQL writes in JSON, without the quotes of a string. */
    static boolean shows(ResultSet row, int n, String type, String expected) throws SQLException {
        if (row.getObject(n) == null || expected == null) {
            return row.getObject(n) == null && expected == null;
        }
        return switch (type) {
            case "boolean" -> row.getObject(n, Boolean.class).toString().equals(expected);
            case "integer" -> row.getObject(n, Integer.class).toString().equals(expected);
            case "bigint" -> row.getObject(n, Long.class).toString().equals(expected);
            case "double precision" -> row.getObject(n, Double.class) == Double.parseDouble(expected);
            case "text" -> row.getObject(n).equals(expected);
            case "void" -> true;
            case "bytea" -> ("\\x" + HexFormat.of().formatHex(row.getBytes(n))).equals(expected);
            case "timestamp with time zone" -> row.getObject(n, OffsetDateTime.class).isEqual(OffsetDateTime.parse(expected));
            case "text[]" -> Arrays.stream(strings(row, n)).collect(Collectors.joining("\",\"", "[\"", "\"]")).equals(expected);
            case "integer[]" -> Arrays.toString((Object[]) row.getArray(n).getArray()).replace(" ", "").equals(expected);
            default -> throw new AssertionError("no test reads the type " + type);
        };
    }

    static String[] strings(ResultSet row, int n) throws SQLException {
        return row.getArray(n) == null ? new String[0] : (String[]) row.getArray(n).getArray();
    }

    static void assertThat(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }
}
