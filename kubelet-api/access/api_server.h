// The two questions that the API server of the cluster answers: who is this, and may they.
#pragma once

#include <optional>
#include <string>

#include "engine/base/status.h"
#include "kubelet-api/access/identity.h"

namespace stasis::kubelet_api {

struct ApiServerOptions {
  std::string url;      ///< https://host:port; empty: there is none.
  std::string ca_file;  ///< PEM; the only authority that its certificate is taken from.
  std::string
      token_file;  ///< Our own credential; read for each call, since it is replaced now and then.
};

class ApiServer {
 public:
  explicit ApiServer(ApiServerOptions options) : options_(std::move(options)) {}

  /// By TokenReview; nothing when the token is nobody's. Unavailable: the API server does not say.
  Result<std::optional<Identity>> WhoHas(const std::string& token) const;
  /// By SubjectAccessReview.
  Result<bool> Allows(const Identity& identity, const Wish& wish) const;

 private:
  Result<nlohmann::json> Create(const std::string& path, const nlohmann::json& object) const;

  const ApiServerOptions options_;
};

}  // namespace stasis::kubelet_api
