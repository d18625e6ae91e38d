#include "kubelet-api/transport/tls.h"

#include <openssl/err.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "cri/log.h"

namespace stasis::kubelet_api {
namespace {

Status TlsError(const std::string& what) {
  const unsigned long error = ::ERR_get_error();
  const char* const reason = ::ERR_reason_error_string(error);
  return InvalidArgument(what + (reason == nullptr ? "" : ": " + std::string(reason)));
}

// HTTP/1.1 is all that is spoken here.
int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_size,
                   const unsigned char* in, unsigned in_size, void*) {
  constexpr std::string_view kHttp = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  const int found = ::SSL_select_next_proto(&chosen, out_size,
                                            reinterpret_cast<const unsigned char*>(kHttp.data()),
                                            kHttp.size(), in, in_size);
  *out = chosen;
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

Result<Tls::Context> Make(const TlsFiles& files) {
  ::ERR_clear_error();
  Tls::Context context(::SSL_CTX_new(::TLS_server_method()), &::SSL_CTX_free);
  SSL_CTX* const raw = context.get();
  if (raw == nullptr || ::SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION) != 1) {
    return TlsError("TLS 1.3");
  }
  ::SSL_CTX_set_alpn_select_cb(raw, ChooseProtocol, nullptr);
  // A resumed session would keep a certificate in use that has run out since.
  ::SSL_CTX_set_num_tickets(raw, 0);
  ::SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (::SSL_CTX_use_certificate_chain_file(raw, files.certificate.c_str()) != 1) {
    return TlsError("the certificate " + files.certificate);
  }
  if (::SSL_CTX_use_PrivateKey_file(raw, files.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      ::SSL_CTX_check_private_key(raw) != 1) {
    return TlsError("the key " + files.key);
  }
  if (files.client_ca.empty()) return context;
  if (::SSL_CTX_load_verify_locations(raw, files.client_ca.c_str(), nullptr) != 1) {
    return TlsError("the client CA " + files.client_ca);
  }
  ::SSL_CTX_set_client_CA_list(raw, ::SSL_load_client_CA_file(files.client_ca.c_str()));
  // Asked for, not demanded: others come with a bearer token. One that is not good ends the handshake.
  ::SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
  return context;
}

}  // namespace

Result<std::unique_ptr<Tls>> Tls::Load(TlsFiles files) {
  std::unique_ptr<Tls> tls(new Tls(std::move(files)));
  tls->stamp_ = tls->Stamp();
  ASSIGN_OR_RETURN(tls->context_, Make(tls->files_));
  return tls;
}

Tls::Context Tls::Current() {
  const std::lock_guard lock(mutex_);
  std::string stamp = Stamp();
  if (stamp == stamp_) return context_;
  stamp_ = std::move(stamp);
  Result<Context> made = Make(files_);
  if (made.ok()) {
    context_ = *std::move(made);
  } else {
    log::Warn("the new TLS files cannot be used, ignoring", {{"reason", ToText(made.status())}});
  }
  return context_;
}

std::string Tls::Stamp() const {
  std::string stamp;
  for (const std::string& path : {files_.certificate, files_.key, files_.client_ca}) {
    struct stat is = {};
    if (path.empty() || ::stat(path.c_str(), &is) != 0) continue;
    stamp += std::to_string(is.st_ino) + ":" + std::to_string(is.st_mtim.tv_sec) + "." +
             std::to_string(is.st_mtim.tv_nsec) + " ";
  }
  return stamp;
}

}  // namespace stasis::kubelet_api
