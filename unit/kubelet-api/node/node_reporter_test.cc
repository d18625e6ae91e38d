#include "kubelet-api/node/node_reporter.h"

#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>

#include "cri/shim.h"
#include "unit/cri/temporary_directory.h"
#include "unit/kubelet-api/http_answers.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using kubelet_api::NodeReporter;

// An agent in front of a runtime that is not there.
class NodeReporterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(directory_ / "token") << "secret";
    auto shim = cri::Shim::Start({
        .listen = "unix://" + directory_ / "shim",
        .runtime_endpoint = "unix://" + directory_ / "runtime",
        .state_dir = directory_ / "state",
        .restore = {.placeholder = "/bin/true", .page_server = "/bin/true"},
    });
    ASSERT_THAT(shim, IsOk());
    shim_ = std::move(*shim);
  }
  void TearDown() override {
    if (shim_) shim_->Shutdown(std::chrono::milliseconds(0));
  }

  std::unique_ptr<NodeReporter> ReporterTo(const HttpAnswers& server) {
    return std::make_unique<NodeReporter>(
        kubelet_api::ApiServerOptions{.url = server.url(),
                                      .ca_file = {},
                                      .token_file = directory_ / "token",
                                      .audiences = {}},
        "n1", "1.2", shim_->agent(), std::chrono::milliseconds(1));
  }

  const TemporaryDirectory directory_;
  std::unique_ptr<cri::Shim> shim_;
};

std::string ConditionOf(const HttpRequest& request) {
  const nlohmann::json& conditions = request.body["status"]["conditions"];
  return conditions.at(0).value("status", "");
}

TEST_F(NodeReporterTest, WhatIsRefusedIsToldAgainUntilItIsTaken) {
  // No right to it, no such node yet, another's change at the same time, too much to do, a failure.
  constexpr std::array kCodes = {403, 404, 409, 429, 500, 200};
  std::atomic<std::size_t> asked = 0;
  HttpAnswers server([&](const HttpRequest&) {
    return HttpAnswer{.code = kCodes[std::min(asked++, kCodes.size() - 1)]};
  });
  server.Begin();
  auto reporter = ReporterTo(server);
  const std::vector<HttpRequest> requests = server.Await(kCodes.size());
  for (const HttpRequest& request : requests) {
    EXPECT_EQ(request.method + " " + request.path, "PATCH /api/v1/nodes/n1/status");
    EXPECT_EQ(request.body["metadata"]["labels"]["stasis.dev/version"], "1.2");
    EXPECT_EQ(ConditionOf(request), "False");
  }
  reporter.reset();
  // What was taken is not told again soon. The end takes it back, also when it comes before the answer.
  const HttpRequest last = server.Await(kCodes.size() + 1).back();
  EXPECT_TRUE(last.body["metadata"]["labels"]["stasis.dev/version"].is_null());
  EXPECT_EQ(last.body["status"]["conditions"][0]["$patch"], "delete");
  EXPECT_EQ(asked, kCodes.size() + 1);
}

TEST_F(NodeReporterTest, AnApiServerThatComesBackIsTold) {
  HttpAnswers server([](const HttpRequest&) { return HttpAnswer{}; });
  const auto reporter = ReporterTo(server);  // refused for now
  server.Begin();
  EXPECT_EQ(ConditionOf(server.Await(1)[0]), "False");
}

}  // namespace
}  // namespace stasis::testing
