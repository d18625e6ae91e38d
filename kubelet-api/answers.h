// Errors as HTTP says them, in the shape of Kubernetes' own (v1 Status), which kubectl prints.
#pragma once

#include <cpprest/http_msg.h>

#include <nlohmann/json.hpp>

#include "engine/base/status.h"

namespace stasis::kubelet_api {

/// By the code, but for a full disk (507) and what is to be tried again (EAGAIN: 429).
int HttpCode(const Status& status);
web::http::http_response JsonAnswer(int code, const nlohmann::json& json);
web::http::http_response ErrorAnswer(const Status& status);
/// 405; `allowed` lists the methods that are possible.
web::http::http_response WrongMethodAnswer(const std::string& method, const std::string& allowed);
web::http::http_response TextAnswer(int code, const std::string& text);

}  // namespace stasis::kubelet_api
