// JDBC knows TCP only, and the throw-away server has a socket.

import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;

public class Relay {
    private interface Task {
        void run() throws Exception;
    }

    /** A port of this program whose connections go to a server's socket. */
    public static int to(String socket) throws Exception {
        ServerSocketChannel port = ServerSocketChannel.open().bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
        daemon(() -> {
            while (true) {
                SocketChannel client = port.accept();
                SocketChannel server = SocketChannel.open(UnixDomainSocketAddress.of(socket));
                daemon(() -> copy(client, server));
                daemon(() -> copy(server, client));
            }
        });
        return port.socket().getLocalPort();
    }

    private static void copy(SocketChannel from, SocketChannel to) throws Exception {
        ByteBuffer bytes = ByteBuffer.allocate(8192);
        try (from; to) {
            while (from.read(bytes) >= 0) {
                bytes.flip();
                while (bytes.hasRemaining()) {
                    to.write(bytes);
                }
                bytes.clear();
            }
        }
    }

    private static void daemon(Task task) {
        Thread thread = new Thread(() -> {
            try {
                task.run();
            } catch (Exception ended) {
                // with the connection
            }
        });
        thread.setDaemon(true);
        thread.start();
    }
}
