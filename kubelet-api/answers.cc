#include "kubelet-api/answers.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "archive/json_fields.h"

namespace stasis::kubelet_api {
namespace {

struct Kind {
  StatusCode status;
  int http_code;
  const char* reason;  // the word of Kubernetes' StatusReason; clients branch on it
};

// Codes that are not here are our own failures.
constexpr std::array kKinds = {
    Kind{StatusCode::kOk, 200, ""},
    Kind{StatusCode::kInvalidArgument, 400, "BadRequest"},
    Kind{StatusCode::kUnauthenticated, 401, "Unauthorized"},
    Kind{StatusCode::kPermissionDenied, 403, "Forbidden"},
    Kind{StatusCode::kNotFound, 404, "NotFound"},
    Kind{StatusCode::kAlreadyExists, 409, "Conflict"},
    Kind{StatusCode::kFailedPrecondition, 409, "Conflict"},
    Kind{StatusCode::kAborted, 409, "Conflict"},
    Kind{StatusCode::kCancelled, 409, "Conflict"},
    Kind{StatusCode::kUnavailable, 503, "ServiceUnavailable"},
    Kind{StatusCode::kDeadlineExceeded, 504, "Timeout"},
};
constexpr Kind kFailure = {StatusCode::kInternal, 500, "InternalError"};
constexpr Kind kTooMany = {StatusCode::kUnavailable, 429, "TooManyRequests"};
constexpr Kind kDiskFull = {StatusCode::kResourceExhausted, 507, "InsufficientStorage"};
constexpr const char* kRetrySeconds = "5";

Kind KindOf(const Status& status) {
  const int error = ErrnoOf(status);
  if (error == EAGAIN) return kTooMany;
  if (error == ENOSPC || error == EDQUOT) return kDiskFull;
  const auto* const found = std::ranges::find(kKinds, status.code(), &Kind::status);
  return found == kKinds.end() ? kFailure : *found;
}

web::http::http_response StatusAnswer(int code, const char* reason, const std::string& message) {
  web::http::http_response response = JsonAnswer(code, {{"kind", "Status"},
                                                        {"apiVersion", "v1"},
                                                        {"metadata", nlohmann::json::object()},
                                                        {"status", "Failure"},
                                                        {"message", message},
                                                        {"reason", reason},
                                                        {"code", code}});
  if (code == 401) response.headers().add("WWW-Authenticate", "Bearer realm=\"stasis\"");
  if (code == 429) response.headers().add("Retry-After", kRetrySeconds);
  return response;
}

}  // namespace

int HttpCode(const Status& status) { return KindOf(status).http_code; }

web::http::http_response JsonAnswer(int code, const nlohmann::json& json) {
  web::http::http_response response(static_cast<web::http::status_code>(code));
  response.set_body(archive::Dump(json) + "\n", "application/json");
  return response;
}

web::http::http_response TextAnswer(int code, const std::string& text) {
  web::http::http_response response(static_cast<web::http::status_code>(code));
  response.set_body(text, "text/plain; charset=utf-8");
  return response;
}

web::http::http_response ErrorAnswer(const Status& status) {
  const Kind kind = KindOf(status);
  return StatusAnswer(kind.http_code, kind.reason, Message(status));
}

web::http::http_response WrongMethodAnswer(const std::string& method, const std::string& allowed) {
  web::http::http_response response =
      StatusAnswer(405, "MethodNotAllowed", method + " is not possible here, but " + allowed);
  response.headers().add("Allow", allowed);
  return response;
}

}  // namespace stasis::kubelet_api
