// The API server of the cluster: who is this, and may they; and what we write there.
#pragma once

#include <chrono>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "kubelet-api/access/identity.h"

namespace stasis::kubelet_api {

struct ApiServerOptions {
  std::string url;      ///< https://host:port; empty: there is none.
  std::string ca_file;  ///< PEM; the only authority that its certificate is taken from.
  /// Our own credential; read for each call, since it is replaced now and then.
  std::string token_file;
  /// Whom tokens have to be made for; empty: the API server itself.
  std::vector<std::string> audiences;
  std::chrono::milliseconds answer_time{10'000};  ///< From the first to the last byte.
};

/// How long the API server wants to be left alone, as an Unavailable of Change() has it: a minute at most, and
/// mostly nothing.
std::chrono::seconds RetryAfterOf(const Status& status);

class ApiServer {
 public:
  explicit ApiServer(ApiServerOptions options) : options_(std::move(options)) {}

  /// By TokenReview; nothing when the token is nobody's, or not for us. Unavailable: the API server does not say.
  /// Why not is in the log alone: anybody may bring this about.
  Result<std::optional<Identity>> WhoHas(const std::string& token,
                                         const std::stop_token& stop) const;
  /// By SubjectAccessReview.
  Result<bool> Allows(const Identity& identity, const Wish& wish,
                      const std::stop_token& stop) const;

  /// Sends `object` to make or change one. NotFound, AlreadyExists, PermissionDenied and InvalidArgument are its
  /// answers; Unavailable: it does not answer, has no time, or does not know us now, and may later.
  Result<nlohmann::json> Change(const std::string& method, const std::string& path,
                                const std::string& media_type, const nlohmann::json& object,
                                const std::stop_token& stop) const;

 private:
  struct Reply {
    int code = 0;  // of HTTP
    nlohmann::json object;
    std::string message;
    std::string retry_after;
  };
  Result<Reply> Send(const std::string& method, const std::string& path,
                     const std::string& media_type, const nlohmann::json& object,
                     const std::stop_token& stop) const;
  Result<nlohmann::json> Create(const std::string& path, const nlohmann::json& object,
                                const std::stop_token& stop) const;

  const ApiServerOptions options_;
};

}  // namespace stasis::kubelet_api
