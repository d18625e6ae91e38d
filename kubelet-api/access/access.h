// Who may do what. The kubelet's way: client certificates and bearer tokens say who it is, the API server says
// what they may.
#pragma once

#include <optional>
#include <stop_token>
#include <string>

#include "engine/base/status.h"
#include "kubelet-api/access/api_server.h"
#include "kubelet-api/access/remembered.h"
#include "kubelet-api/transport/connection.h"
#include "kubelet-api/turns.h"

namespace stasis::kubelet_api {

struct Credentials {
  std::optional<CertificateSubject> certificate;
  std::string authorization;  ///< The header; empty: none.
  std::string network;        ///< Where the request comes from, as bounds count it.
};

class Access {
 public:
  /// Where `takes_certificates`, the transport has verified those that it shows.
  Access(const ApiServerOptions& options, bool takes_certificates)
      : api_server_(options),
        has_api_server_(!options.url.empty()),
        takes_certificates_(takes_certificates) {}

  /// Unauthenticated: nobody known. PermissionDenied: there is nothing here to know anybody by. Unavailable: the
  /// API server does not answer, or is asked too much already; nobody is let in then.
  Result<Identity> Authenticate(const Credentials& credentials, const std::stop_token& stop);
  /// PermissionDenied: not allowed. Unavailable: as above.
  Status Authorize(const Identity& identity, const Wish& wish, const std::stop_token& stop);

 private:
  static constexpr auto kKept = std::chrono::seconds(10);

  Result<std::optional<Identity>> WhoHas(const std::string& token, const std::string& network,
                                         const std::stop_token& stop);
  Result<bool> Allows(const Identity& identity, const Wish& wish, const std::stop_token& stop);

  const ApiServer api_server_;
  const bool has_api_server_;
  const bool takes_certificates_;
  // Tokens by their digest. Anybody can send one that is nobody's, and any user can ask for what they may not.
  Remembered<Identity> tokens_{kKept};
  Remembered<bool> nobodys_tokens_{kKept};
  Remembered<bool> rights_{kKept};
  Remembered<bool> refusals_{kKept};
  Turns strangers_{8, 16};  // whose tokens are being asked about, by network
};

}  // namespace stasis::kubelet_api
