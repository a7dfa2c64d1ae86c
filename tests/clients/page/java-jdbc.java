import java.net.InetAddress;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.Scanner;
import java.util.logging.Logger;
import javax.sql.DataSource;
import org.postgresql.ds.PGSimpleDataSource;

class Page {
    final Logger log = Logger.getGlobal();
    final DataSource pool;

    Page(DataSource pool) {
        this.pool = pool;
    }

    // THE BLOCK

    public static void main(String[] args) throws Exception {
        PGSimpleDataSource pool = new PGSimpleDataSource();
        pool.setServerNames(new String[] {InetAddress.getLoopbackAddress().getHostAddress()});
        pool.setPortNumbers(new int[] {Relay.to(System.getenv("PGHOST") + "/.s.PGSQL." + System.getenv("PGPORT"))});
        pool.setDatabaseName(System.getenv("PGDATABASE"));
        pool.setUser(System.getenv("PGUSER"));
        Page page = new Page(pool);

        for (Scanner lines = new Scanner(System.in); lines.hasNextLine();) {
            String[] words = lines.nextLine().split(" ");
            long key = Long.parseLong(words[1]);
            System.out.println(words[0].equals("enroll") ? page.enroll(key) : page.secondFactor(key, words.length > 2 ? words[2] : null));
        }
    }
}
