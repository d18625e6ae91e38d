#include "kubelet-api/answers.h"

#include "archive/json_fields.h"

namespace stasis::kubelet_api {
namespace {

// The words of Kubernetes' StatusReason; clients branch on them.
const char* Reason(int http_code) {
  switch (http_code) {
    case 400:
      return "BadRequest";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "NotFound";
    case 409:
      return "Conflict";
    case 503:
      return "ServiceUnavailable";
    case 504:
      return "Timeout";
    default:
      return "InternalError";
  }
}

}  // namespace

int HttpCode(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return 200;
    case StatusCode::kInvalidArgument:
      return 400;
    case StatusCode::kUnauthenticated:
      return 401;
    case StatusCode::kPermissionDenied:
      return 403;
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kAlreadyExists:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kAborted:
    case StatusCode::kCancelled:
      return 409;
    case StatusCode::kUnavailable:
      return 503;
    case StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

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
  const int code = HttpCode(status.code());
  web::http::http_response response = JsonAnswer(code, {{"kind", "Status"},
                                                        {"apiVersion", "v1"},
                                                        {"metadata", nlohmann::json::object()},
                                                        {"status", "Failure"},
                                                        {"message", Message(status)},
                                                        {"reason", Reason(code)},
                                                        {"code", code}});
  if (code == 401) response.headers().add("WWW-Authenticate", "Bearer realm=\"stasis\"");
  return response;
}

}  // namespace stasis::kubelet_api
