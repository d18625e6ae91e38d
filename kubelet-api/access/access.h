// Who may do what. The kubelet's way: client certificates and bearer tokens say who it is, the API server says
// what they may.
#pragma once

#include <optional>
#include <string>

#include "engine/base/status.h"
#include "kubelet-api/access/api_server.h"
#include "kubelet-api/access/remembered.h"
#include "kubelet-api/transport/connection.h"

namespace stasis::kubelet_api {

struct Credentials {
  std::optional<CertificateSubject> certificate;
  std::string authorization;  ///< The header; empty: none.
};

class Access {
 public:
  /// Where `takes_certificates`, the transport has verified those that it shows.
  Access(const ApiServerOptions& options, bool takes_certificates)
      : api_server_(options),
        has_api_server_(!options.url.empty()),
        takes_certificates_(takes_certificates) {}

  /// Unauthenticated: nobody known. PermissionDenied: not allowed, or nothing here can decide it. Unavailable:
  /// the API server does not answer, so nobody is let in. Gives the user's name.
  Result<std::string> Check(const Credentials& credentials, const Wish& wish);

 private:
  Result<Identity> Authenticate(const Credentials& credentials);
  Result<std::optional<Identity>> WhoHas(const std::string& token);
  Result<bool> Allows(const Identity& identity, const Wish& wish);

  const ApiServer api_server_;
  const bool has_api_server_;
  const bool takes_certificates_;
  Remembered<std::optional<Identity>> tokens_{std::chrono::seconds(10)};  // by the token's digest
  Remembered<bool> rights_{std::chrono::seconds(10)};
};

}  // namespace stasis::kubelet_api
