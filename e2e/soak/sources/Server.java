import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

/** Counts for each client, and leaves garbage of known content behind. */
public class Server {
  static final Map<String, AtomicLong> counts = new ConcurrentHashMap<>();
  static final Map<Integer, byte[]> kept = new ConcurrentHashMap<>();
  static final AtomicLong ticks = new AtomicLong();
  static final ExecutorService pool = Executors.newFixedThreadPool(4);
  static volatile String wrong = "";

  /** Keeps some arrays alive while many more die, and checks them before they are let go. */
  static void churn(int round) {
    byte[] fresh = new byte[16 * 1024];
    Arrays.fill(fresh, (byte) round);
    byte[] old = kept.put(round % 512, fresh);
    if (old == null) return;
    byte wanted = (byte) (round - 512);
    for (byte one : old) {
      if (one != wanted) {
        wrong = "an array of " + one + ", not " + wanted;
        return;
      }
    }
  }

  static long mixed(long value) {
    for (int i = 0; i < 10_000; i++) value = value * 6364136223846793005L + 1442695040888963407L;
    return value;
  }

  static String check() throws Exception {
    long before = ticks.get();
    Future<Long> first = pool.submit(() -> mixed(42));
    Future<Long> second = CompletableFuture.supplyAsync(() -> mixed(42), pool);
    if (!first.get().equals(second.get())) return "two answers to one question";
    for (int i = 0; i < 200 && ticks.get() == before; i++) Thread.sleep(50);
    if (ticks.get() == before) return "a timer that stands still";
    return wrong.isEmpty() ? "ok" : wrong;
  }

  static void serve(HttpExchange exchange) {
    try (exchange) {
      String path = exchange.getRequestURI().getPath();
      String client = path.substring(path.lastIndexOf('/') + 1);
      String text = path.equals("/check") ? check()
          : client + " " + counts.computeIfAbsent(client, key -> new AtomicLong()).incrementAndGet();
      byte[] body = text.getBytes(StandardCharsets.UTF_8);
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
    } catch (Exception error) {
      error.printStackTrace();
    }
  }

  public static void main(String[] words) throws Exception {
    ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
    timer.scheduleAtFixedRate(ticks::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);
    Thread churning = new Thread(() -> {
      for (int round = 0; ; round++) {
        churn(round);
        if (round % 64 == 0) java.util.concurrent.locks.LockSupport.parkNanos(2_000_000);
      }
    });
    churning.setDaemon(true);
    churning.start();
    HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8080), 64);
    server.createContext("/", Server::serve);
    server.setExecutor(Executors.newCachedThreadPool());
    server.start();
  }
}
