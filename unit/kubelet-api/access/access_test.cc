#include "kubelet-api/access/access.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <fstream>
#include <future>
#include <thread>
#include <vector>

#include "kubelet-api/client_threads.h"
#include "unit/kubelet-api/http_answers.h"

namespace stasis::testing {
namespace {

using kubelet_api::Access;
using kubelet_api::ApiServerOptions;

constexpr std::chrono::milliseconds kNever = std::chrono::minutes(10);

class AccessTest : public ::testing::Test {
 protected:
  AccessTest() {
    kubelet_api::StartClientThreads();
    std::ofstream(token_file_) << "ours\n";
  }

  ApiServerOptions Options(const std::string& url, std::chrono::milliseconds answer_time) const {
    return {.url = url,
            .ca_file = {},
            .token_file = token_file_,
            .audiences = {},
            .answer_time = answer_time};
  }
  static Result<kubelet_api::Identity> Ask(Access& access, const std::string& token,
                                           const std::stop_token& stop = {}) {
    return access.Authenticate(
        {.certificate = {}, .authorization = "Bearer " + token, .network = "10.0.0.1"}, stop);
  }

 private:
  const std::string token_file_ = ::testing::TempDir() + "access-token";
};

TEST_F(AccessTest, AnApiServerThatDoesNotAnswerIsNotWaitedFor) {
  HttpAnswers silent({});
  silent.Listen();
  Access access(Options(silent.url(), std::chrono::milliseconds(50)), false);
  EXPECT_EQ(Ask(access, "anybody").status().code(), StatusCode::kUnavailable);
}

TEST_F(AccessTest, AnAnswerThatComesByteForByteIsNotWaitedFor) {
  HttpAnswers slow([](const HttpRequest&) { return HttpAnswer{.never_ends = true}; });
  slow.Begin();
  Access access(Options(slow.url(), std::chrono::milliseconds(200)), false);
  EXPECT_EQ(Ask(access, "anybody").status().code(), StatusCode::kUnavailable);
}

TEST_F(AccessTest, ATokenThatIsNobodysIsAskedAboutOnce) {
  HttpAnswers nobody([](const HttpRequest&) { return HttpAnswer(); });
  nobody.Begin();
  Access access(Options(nobody.url(), kNever), false);
  for (const char* const token : {"a", "a", "b"}) {
    EXPECT_EQ(Ask(access, token).status().code(), StatusCode::kUnauthenticated);
  }
  EXPECT_EQ(nobody.Await(2).size(), 2);
}

// Of one network: eight hang, the ninth is told at once, and a stop ends all.
TEST_F(AccessTest, ManyTokensDoNotFloodAnApiServerThatHangs) {
  HttpAnswers silent({});
  silent.Listen();
  Access access(Options(silent.url(), kNever), false);
  std::stop_source stop;
  std::promise<void> refused;
  std::atomic<int> refusals = 0, others = 0;
  {
    std::vector<std::jthread> strangers;
    for (int number = 0; number < 9; ++number) {
      strangers.emplace_back([&, token = std::to_string(number)] {
        const Status status = Ask(access, token, stop.get_token()).status();
        EXPECT_EQ(status.code(), StatusCode::kUnavailable);
        if (ErrnoOf(status) != EAGAIN) {
          ++others;
        } else if (++refusals == 1) {
          refused.set_value();
        }
      });
    }
    refused.get_future().wait();
    EXPECT_EQ(others, 0);
    stop.request_stop();
  }
  EXPECT_EQ(refusals, 1);
  EXPECT_EQ(others, 8);
}

}  // namespace
}  // namespace stasis::testing
