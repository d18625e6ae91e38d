// The server's side of TLS: 1.3 alone, with the certificate that is in the files now.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <mutex>
#include <string>

#include "engine/base/status.h"

namespace stasis::kubelet_api {

struct TlsFiles {
  std::string certificate;  ///< PEM: the server's, and those between it and its root.
  std::string key;          ///< PEM.
  std::string client_ca;    ///< PEM; empty: clients are not asked for certificates.
};

class Tls {
 public:
  using Context = std::shared_ptr<SSL_CTX>;

  static Result<std::unique_ptr<Tls>> Load(TlsFiles files);

  /// For the next connection. Files that were replaced (certificates are rotated) are read again; while they
  /// cannot be used, the ones before stay.
  Context Current();

 private:
  explicit Tls(TlsFiles files) : files_(std::move(files)) {}
  std::string Stamp() const;

  const TlsFiles files_;
  std::mutex mutex_;
  std::string stamp_;
  Context context_;
};

}  // namespace stasis::kubelet_api
