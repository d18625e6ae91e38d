// One accepted connection, plain or TLS, on which nothing is waited for without an end.
#pragma once

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::kubelet_api {

/// Whom a verified client certificate is for, as Kubernetes reads it: common name and organizations.
struct CertificateSubject {
  std::string user;
  std::vector<std::string> groups;
};

/// As Go's crypto/x509 reads it, by which the API server lives: of several common names the last. Nothing without
/// one, and where a name is no text.
std::optional<CertificateSubject> SubjectOf(const X509* certificate);

/// A stream for Boost.Beast (its SyncReadStream), and a writer.
class Connection {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// `socket` stays the caller's, and outlives this. `tls` null: plain. The handshake is made here, until
  /// `deadline`.
  static Result<std::unique_ptr<Connection>> Open(int socket, SSL_CTX* tls, TimePoint deadline);

  int fd() const { return socket_; }
  /// Until when all reading has to be done.
  void set_read_deadline(TimePoint deadline) { read_deadline_ = deadline; }
  /// Nothing when the client showed no certificate, or it has run out since.
  std::optional<CertificateSubject> Subject() const;

  Status Write(const char* data, std::size_t size, TimePoint deadline);
  /// True when there is something to read, false when `deadline` came first.
  bool WaitForInput(TimePoint deadline);

  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers, boost::system::error_code& error) {
    const boost::asio::mutable_buffer first = *boost::asio::buffer_sequence_begin(buffers);
    return ReadSome(static_cast<char*>(first.data()), first.size(), error);
  }
  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers) {
    boost::system::error_code error;
    const std::size_t size = read_some(buffers, error);
    if (error) throw boost::system::system_error(error);
    return size;
  }

 private:
  struct FreeSsl {
    void operator()(SSL* ssl) const { ::SSL_free(ssl); }
  };

  explicit Connection(int socket) : socket_(socket) {}
  std::size_t ReadSome(char* data, std::size_t size, boost::system::error_code& error);
  // Waits for what the last call lacked; false: `deadline` came first, or the call is beyond help.
  bool WaitFor(int result, short plain_events, TimePoint deadline);
  bool Poll(short events, TimePoint deadline) const;

  const int socket_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  TimePoint read_deadline_;
};

}  // namespace stasis::kubelet_api
