#include "kubelet-api/transport/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

#include "unit/kubelet-api/transport/served.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using ::testing::HasSubstr;

// Long enough that only a hang is ended by it.
constexpr std::chrono::milliseconds kNever = std::chrono::minutes(1);

TEST(HttpServerTest, AnswersRequestsThatComeTogether) {
  const Served served(AnswerPath);
  const PlainClient client = served.Client();
  ASSERT_TRUE(client.Send("GET /one HTTP/1.1\r\n\r\nGET /two HTTP/1.1\r\n\r\n"));
  EXPECT_THAT(client.ReadUntil("/two\n.\n"), HasSubstr("/one\n.\n"));
}

TEST(HttpServerTest, StrangersGiveWayToOthers) {
  const Served served(AnswerPath,
                      {.connections = 6, .connections_an_address = 4, .idle_time = kNever});
  std::vector<PlainClient> strangers;
  for (const int from : {2, 2, 2, 3, 3, 3}) {
    strangers.push_back(served.Client(from));
    ASSERT_THAT(strangers.back().Get("/anybody"), HasSubstr("200"));
    served.AwaitIdle(static_cast<int>(strangers.size()));
  }
  const PlainClient last = served.Client(4);
  EXPECT_THAT(last.Get("/anybody"), HasSubstr("200"));
  EXPECT_TRUE(strangers.front().IsLeft());
  EXPECT_TRUE(strangers.back().IsOpen());
}

TEST(HttpServerTest, WhoIsKnownStaysWhenStrangersCome) {
  const Served served(AnswerPath,
                      {.connections = 4, .connections_an_address = 2, .idle_time = kNever});
  const PlainClient known = served.Client(2);
  ASSERT_THAT(known.Get("/known"), HasSubstr("200"));
  std::vector<PlainClient> strangers;
  for (int time = 0; time < 20; ++time) {
    for (const int from : {2, 3, 4}) {
      strangers.push_back(served.Client(from));
      EXPECT_THAT(strangers.back().Get("/anybody"), HasSubstr("200"));
      served.AwaitIdle(std::min(static_cast<int>(strangers.size()) + 1, 4));
    }
  }
  EXPECT_THAT(known.Get("/still-here"), HasSubstr("/still-here"));
}

TEST(HttpServerTest, OneAddressHasSoManyConnections) {
  const Served served(AnswerPath, {.connections_an_address = 2, .idle_time = kNever});
  const PlainClient first = served.Client(), second = served.Client();
  ASSERT_THAT(first.Get("/known"), HasSubstr("200"));
  ASSERT_THAT(second.Get("/anybody"), HasSubstr("200"));
  served.AwaitIdle(2);
  EXPECT_THAT(served.Client().Get("/anybody"), HasSubstr("200"));
  EXPECT_TRUE(second.IsLeft());
  EXPECT_TRUE(first.IsOpen());
}

TEST(HttpServerTest, ASilentStrangerHasTheTimeOfARequest) {
  const Served served(AnswerPath,
                      {.request_time = std::chrono::milliseconds(50), .idle_time = kNever});
  EXPECT_TRUE(served.Client().IsLeft());
}

TEST(HttpServerTest, AConnectionHasAnEnd) {
  const Served served(AnswerPath, {.connection_time = std::chrono::milliseconds(0)});
  EXPECT_THAT(served.Client().Get("/known"), HasSubstr("Connection: close"));
}

// 0: a server without threads for new clients goes on as soon as there are some.
int ServeInWantOfThreads() {
  const Served served(AnswerPath);
  if (served.Client().Get("/before").find("200") == std::string::npos) return 1;
  if (::setresuid(65534, 65534, 65534) != 0) return 2;  // root has as many as it likes
  rlimit limit = {};
  ::getrlimit(RLIMIT_NPROC, &limit);
  const rlim_t before = std::exchange(limit.rlim_cur, 0);
  ::setrlimit(RLIMIT_NPROC, &limit);
  if (!served.Client().IsLeft()) return 3;
  limit.rlim_cur = before;
  ::setrlimit(RLIMIT_NPROC, &limit);
  return served.Client().Get("/after").find("200") == std::string::npos ? 4 : 0;
}

TEST(HttpServerTest, OutlivesWantOfThreads) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // in a process of its own
  EXPECT_EXIT(::_exit(ServeInWantOfThreads()), ::testing::ExitedWithCode(0), "");
}

TEST(HttpServerTest, ShutdownStopsWhatIsUnderWayAfterTheGrace) {
  std::promise<void> under_way;
  Served served([&](const web::http::http_request& request) {
    const std::stop_token stop = kubelet_api::ExchangeOf(request).stop;
    under_way.set_value();
    while (!stop.stop_requested()) std::this_thread::yield();
    request.reply(503, "stopped\n.\n").wait();
  });
  const PlainClient client = served.Client(), idle = served.Client();
  ASSERT_TRUE(client.Send("GET /long HTTP/1.1\r\n\r\n"));
  under_way.get_future().wait();
  served.server().Shutdown(std::chrono::milliseconds(1));
  EXPECT_THAT(client.ReadUntil("stopped"), HasSubstr("503"));
  EXPECT_TRUE(idle.IsLeft());
}

TEST(HttpServerTest, ShutdownWaitsForWhatEndsInTime) {
  std::promise<void> under_way, go_on;
  Served served([&](const web::http::http_request& request) {
    under_way.set_value();
    go_on.get_future().wait();
    request.reply(200, "done\n.\n").wait();
  });
  const PlainClient client = served.Client(), idle = served.Client();
  ASSERT_TRUE(client.Send("GET /short HTTP/1.1\r\n\r\n"));
  under_way.get_future().wait();
  std::thread end([&] { served.server().Shutdown(kNever); });
  EXPECT_TRUE(idle.IsLeft());
  EXPECT_FALSE(served.Client().connected());  // and nobody new waits for the end of the grace
  go_on.set_value();
  EXPECT_THAT(client.ReadUntil("done"), HasSubstr("200"));
  end.join();
}

}  // namespace
}  // namespace stasis::testing
