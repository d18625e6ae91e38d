#include "kubelet-api/events/event_writer.h"

#include <atomic>
#include <fstream>
#include <future>
#include <memory>
#include <set>
#include <thread>

#include "kubelet-api/names.h"
#include "unit/cri/temporary_directory.h"
#include "unit/kubelet-api/http_answers.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using kubelet_api::EventWriter;

class EventWriterTest : public ::testing::Test {
 protected:
  EventWriterTest() { std::ofstream(directory_ / "token") << "secret\n"; }

  std::unique_ptr<EventWriter> WriterTo(const HttpAnswers& server) {
    using std::chrono::milliseconds;
    return std::make_unique<EventWriter>(
        kubelet_api::ApiServerOptions{.url = server.url(),
                                      .ca_file = {},
                                      .token_file = directory_ / "token",
                                      .audiences = {}},
        "n1",
        kubelet_api::EventPaces{.between_writes = milliseconds(0), .while_away = milliseconds(1)});
  }

  static cri::PodEvent Event(const std::string& pod, const std::string& reason = "Restored") {
    return {
        .of = {.names = {.pod_namespace = "shop", .pod = pod, .container = "c"}, .pod_uid = "u"},
        .is_warning = false,
        .reason = reason,
        .message = "restored",
        .time = std::chrono::system_clock::now()};
  }

  static cri::EventCounts AwaitCounts(const EventWriter& writer, std::uint64_t in_all) {
    while (true) {
      const cri::EventCounts counts = writer.counts();
      if (counts.written + counts.dropped >= in_all) return counts;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  const TemporaryDirectory directory_;
};

TEST_F(EventWriterTest, WritesAnEventOfThePod) {
  HttpAnswers server([](const HttpRequest&) { return HttpAnswer{.code = 201}; });
  server.Begin();
  const auto writer = WriterTo(server);
  writer->Tell(Event(std::string(253, 'p')));
  const HttpRequest request = server.Await(1)[0];
  EXPECT_EQ(request.method + " " + request.path, "POST /api/v1/namespaces/shop/events");
  EXPECT_EQ(request.body["involvedObject"]["uid"], "u");
  EXPECT_EQ(request.body["count"], 1);
  const std::string name = request.body["metadata"]["name"];
  EXPECT_LE(name.size(), 253u);
  EXPECT_TRUE(kubelet_api::IsObjectName(name)) << name;
  EXPECT_EQ(AwaitCounts(*writer, 1).written, 1u);
}

TEST_F(EventWriterTest, WhatIsRefusedIsDroppedAndTheNextIsWritten) {
  for (const int code : {400, 403, 404, 422}) {
    std::atomic<int> asked = 0;
    HttpAnswers server(
        [&](const HttpRequest&) { return HttpAnswer{.code = asked++ == 0 ? code : 201}; });
    server.Begin();
    const auto writer = WriterTo(server);
    writer->Tell(Event("one"));
    server.Await(1);
    writer->Tell(Event("two"));
    EXPECT_EQ(server.Await(2)[1].body["involvedObject"]["name"], "two");
    const cri::EventCounts counts = AwaitCounts(*writer, 2);
    EXPECT_EQ(counts.dropped, 1u) << code;
    EXPECT_EQ(counts.written, 1u) << code;
  }
}

TEST_F(EventWriterTest, WhatIsNotAnsweredIsSentAgainByTheSameName) {
  for (const int code : {401, 429, 500, 503}) {
    std::atomic<int> asked = 0;
    // The first had come through; only its answer had not.
    HttpAnswers server(
        [&](const HttpRequest&) { return HttpAnswer{.code = asked++ == 0 ? code : 409}; });
    server.Begin();
    const auto writer = WriterTo(server);
    writer->Tell(Event("one"));
    const std::vector<HttpRequest> requests = server.Await(2);
    EXPECT_EQ(requests[0].body["metadata"]["name"], requests[1].body["metadata"]["name"]) << code;
    EXPECT_EQ(AwaitCounts(*writer, 1).written, 1u) << code;
  }
}

TEST_F(EventWriterTest, AnApiServerThatComesBackGetsWhatWaited) {
  HttpAnswers server([](const HttpRequest&) { return HttpAnswer{.code = 201}; });
  const auto writer = WriterTo(server);  // refused for now
  for (const char* const pod : {"one", "two", "three"}) writer->Tell(Event(pod));
  server.Begin();
  std::set<std::string> pods;
  for (const HttpRequest& request : server.Await(3)) {
    pods.insert(request.body["involvedObject"]["name"]);
  }
  EXPECT_EQ(pods, (std::set<std::string>{"one", "three", "two"}));
  EXPECT_EQ(AwaitCounts(*writer, 3).written, 3u);
}

TEST_F(EventWriterTest, AlikeEventsAreOneThatCounts) {
  std::promise<void> told;
  std::atomic<int> asked = 0;
  HttpAnswers server([&](const HttpRequest&) {
    if (asked++ == 0) told.get_future().wait();
    return HttpAnswer{.code = asked == 1 ? 201 : 200};
  });
  server.Begin();
  auto writer = WriterTo(server);
  writer->Tell(Event("one"));
  const std::string name = server.Await(1)[0].body["metadata"]["name"];
  for (int i = 0; i < 4; ++i) writer->Tell(Event("one"));
  told.set_value();
  AwaitCounts(*writer, 1);
  writer.reset();  // waits for no pause
  const HttpRequest change = server.Await(2)[1];
  EXPECT_EQ(change.method + " " + change.path, "PATCH /api/v1/namespaces/shop/events/" + name);
  EXPECT_EQ(change.body["count"], 5);
}

TEST_F(EventWriterTest, AnEventThatIsGoneIsMadeAnew) {
  std::atomic<int> asked = 0;
  HttpAnswers server([&](const HttpRequest& request) {
    ++asked;
    return HttpAnswer{.code = request.method == "PATCH" ? 404 : 201};
  });
  server.Begin();
  auto writer = WriterTo(server);
  writer->Tell(Event("one"));
  AwaitCounts(*writer, 1);
  writer->Tell(Event("one"));
  writer.reset();
  const std::vector<HttpRequest> requests = server.Await(3);
  EXPECT_EQ(requests[1].method, "PATCH");
  EXPECT_EQ(requests[2].method, "POST");
  EXPECT_NE(requests[2].body["metadata"]["name"], requests[0].body["metadata"]["name"]);
  EXPECT_EQ(requests[2].body["count"], 2);
}

TEST_F(EventWriterTest, WhatIsTooMuchIsDroppedAndNobodyWaits) {
  std::promise<void> told;
  const std::shared_future<void> may_answer = told.get_future().share();
  HttpAnswers server([&](const HttpRequest&) {
    may_answer.wait();
    return HttpAnswer{.code = 201};
  });
  server.Begin();
  const auto writer = WriterTo(server);
  writer->Tell(Event("first"));
  server.Await(1);
  for (int i = 0; i < 300; ++i) writer->Tell(Event("pod-" + std::to_string(i)));
  EXPECT_EQ(writer->counts().dropped, 300u - 256u);
  told.set_value();
  EXPECT_EQ(AwaitCounts(*writer, 301).written, 257u);
}

TEST_F(EventWriterTest, AnApiServerThatDoesNotAnswerKeepsNobodyFromEnding) {
  std::promise<void> ended;
  HttpAnswers server([&](const HttpRequest&) {
    ended.get_future().wait();
    return HttpAnswer{.code = 201};
  });
  server.Begin();
  auto writer = WriterTo(server);
  writer->Tell(Event("one"));
  server.Await(1);
  writer.reset();
  ended.set_value();
}

TEST(RetryAfterTest, IsTheApiServersWithinAMinute) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "token") << "secret";
  const std::vector<std::pair<std::string, int>> cases = {{"Retry-After: 7\r\n", 7},
                                                          {"Retry-After: 3600\r\n", 60},
                                                          {"Retry-After: -1\r\n", 0},
                                                          {"Retry-After: later\r\n", 0},
                                                          {"", 0}};
  for (const auto& [header, seconds] : cases) {
    HttpAnswers server(
        [&](const HttpRequest&) { return HttpAnswer{.code = 429, .headers = header}; });
    server.Begin();
    const kubelet_api::ApiServer api_server(
        {.url = server.url(), .ca_file = {}, .token_file = directory / "token", .audiences = {}});
    const auto answer = api_server.Change("POST", "/", "application/json", {}, {});
    EXPECT_THAT(answer, StatusIs(StatusCode::kUnavailable));
    EXPECT_EQ(kubelet_api::RetryAfterOf(answer.status()), std::chrono::seconds(seconds)) << header;
  }
}

}  // namespace
}  // namespace stasis::testing
