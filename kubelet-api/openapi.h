// The document openapi.json, as it was when this was built.
#pragma once

#include <string_view>

namespace stasis::kubelet_api {

extern const std::string_view kOpenApi;

}  // namespace stasis::kubelet_api
