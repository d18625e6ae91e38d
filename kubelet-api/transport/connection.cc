#include "kubelet-api/transport/connection.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <cerrno>

namespace stasis::kubelet_api {
namespace {

using std::chrono::steady_clock;

// Nothing when one of them is no text.
std::optional<std::vector<std::string>> Entries(const X509_NAME* name, int nid) {
  std::vector<std::string> values;
  for (int at = -1; (at = ::X509_NAME_get_index_by_NID(name, nid, at)) >= 0;) {
    unsigned char* text = nullptr;
    const int size =
        ::ASN1_STRING_to_UTF8(&text, ::X509_NAME_ENTRY_get_data(::X509_NAME_get_entry(name, at)));
    if (size < 0) return std::nullopt;
    values.emplace_back(reinterpret_cast<const char*>(text), static_cast<std::size_t>(size));
    ::OPENSSL_free(text);
  }
  return values;
}

}  // namespace

// Source  Go crypto/x509/pkix, Name.FillFromRDNSequence: each common name takes the place of the one before
std::optional<CertificateSubject> SubjectOf(const X509* certificate) {
  const X509_NAME* const name = ::X509_get_subject_name(certificate);
  const auto names = Entries(name, NID_commonName);
  auto organizations = Entries(name, NID_organizationName);
  if (!names || names->empty() || names->back().empty() || !organizations) return std::nullopt;
  return CertificateSubject{.user = names->back(), .groups = *std::move(organizations)};
}

Result<std::unique_ptr<Connection>> Connection::Open(int socket, SSL_CTX* tls, TimePoint deadline) {
  std::unique_ptr<Connection> made(new Connection(socket));
  if (tls == nullptr) return made;
  made->ssl_.reset(::SSL_new(tls));
  if (made->ssl_ == nullptr || ::SSL_set_fd(made->ssl_.get(), made->fd()) != 1) {
    return ResourceExhausted("SSL_new");
  }
  while (true) {
    ::ERR_clear_error();
    const int result = ::SSL_accept(made->ssl_.get());
    if (result == 1) return made;
    if (!made->WaitFor(result, 0, deadline)) {
      const unsigned long error = ::ERR_get_error();
      const char* const reason = error == 0 ? nullptr : ::ERR_reason_error_string(error);
      return Aborted(reason == nullptr ? "no TLS handshake in time" : reason);
    }
  }
}

std::optional<CertificateSubject> Connection::Subject() const {
  if (ssl_ == nullptr || ::SSL_get_verify_result(ssl_.get()) != X509_V_OK) return std::nullopt;
  const std::unique_ptr<X509, decltype(&::X509_free)> certificate(
      ::SSL_get1_peer_certificate(ssl_.get()), &::X509_free);
  // A connection may outlive the certificate that it began with.
  if (certificate == nullptr ||
      ::X509_cmp_current_time(::X509_get0_notAfter(certificate.get())) <= 0) {
    return std::nullopt;
  }
  return SubjectOf(certificate.get());
}

std::size_t Connection::ReadSome(char* data, std::size_t size, boost::system::error_code& error) {
  error = {};
  if (size == 0) return 0;
  while (true) {
    ::ERR_clear_error();
    const auto result =
        ssl_ ? ::SSL_read(ssl_.get(), data, static_cast<int>(std::min(size, std::size_t{64} << 10)))
             : static_cast<int>(::recv(fd(), data, std::min(size, std::size_t{64} << 10), 0));
    if (result > 0) return static_cast<std::size_t>(result);
    if (!ssl_ && result == 0) break;
    if (!WaitFor(result, POLLIN, read_deadline_)) {
      if (steady_clock::now() < read_deadline_) break;
      error = boost::asio::error::timed_out;
      return 0;
    }
  }
  error = boost::asio::error::eof;
  return 0;
}

Status Connection::Write(const char* data, std::size_t size, TimePoint deadline) {
  while (size > 0) {
    ::ERR_clear_error();
    const int piece = static_cast<int>(std::min(size, std::size_t{64} << 10));
    const int result =
        ssl_ ? ::SSL_write(ssl_.get(), data, piece)
             : static_cast<int>(::send(fd(), data, static_cast<std::size_t>(piece), MSG_NOSIGNAL));
    if (result > 0) {
      data += result;
      size -= static_cast<std::size_t>(result);
    } else if (!WaitFor(result, POLLOUT, deadline)) {
      return Aborted("the client is gone, or too slow");
    }
  }
  return OkStatus();
}

bool Connection::WaitForInput(TimePoint deadline) {
  return (ssl_ && ::SSL_pending(ssl_.get()) > 0) || Poll(POLLIN, deadline);
}

bool Connection::WaitFor(int result, short plain_events, TimePoint deadline) {
  if (!ssl_) return (errno == EAGAIN || errno == EINTR) && Poll(plain_events, deadline);
  switch (::SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return Poll(POLLIN, deadline);
    case SSL_ERROR_WANT_WRITE:
      return Poll(POLLOUT, deadline);
    default:
      return false;
  }
}

bool Connection::Poll(short events, TimePoint deadline) const {
  pollfd waiting = {fd(), events, 0};
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
    if (left <= 0) return false;
    const int ready = ::poll(&waiting, 1, static_cast<int>(std::min<long>(left, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace stasis::kubelet_api
