// The document knows every code that the server can give.
#include "kubelet-api/openapi.h"

#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>

#include "kubelet-api/answers.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using nlohmann::json;

// Whatever goes wrong in a handler, and (408, 413, 417, 431) before one is asked.
std::set<std::string> PossibleCodes() {
  std::set<std::string> codes = {"408", "413", "417", "431"};
  for (int code = 1; code <= static_cast<int>(StatusCode::kUnauthenticated); ++code) {
    const Status status = MakeStatus(static_cast<StatusCode>(code), "what");
    codes.insert(std::to_string(kubelet_api::HttpCode(status)));
  }
  for (const int error : {EAGAIN, ENOSPC, EDQUOT}) {
    codes.insert(std::to_string(kubelet_api::HttpCode(SyscallError(error, "what"))));
  }
  return codes;
}

TEST(OpenApiTest, EveryOperationHasEveryCode) {
  const json document = json::parse(kubelet_api::kOpenApi);
  for (const auto& [path, operations] : document["paths"].items()) {
    for (const auto& [method, operation] : operations.items()) {
      const bool for_anybody = operation.value("security", json()) == json::array();
      for (const std::string& code : PossibleCodes()) {
        const bool of_users = code == "401" || code == "403" || code == "404" || code == "409" ||
                              code == "429" || code >= "503";
        if (for_anybody && of_users) continue;
        EXPECT_TRUE(operation["responses"].contains(code)) << method << " " << path << ": " << code;
      }
    }
  }
}

TEST(OpenApiTest, ADiskThatIsFullAndWhatIsToBeTriedAgainHaveCodesOfTheirOwn) {
  EXPECT_EQ(kubelet_api::HttpCode(SyscallError(ENOSPC, "write")), 507);
  EXPECT_EQ(kubelet_api::HttpCode(SyscallError(EAGAIN, "too many")), 429);
  EXPECT_EQ(kubelet_api::HttpCode(ResourceExhausted("an archive beyond a limit")), 500);
}

}  // namespace
}  // namespace stasis::testing
