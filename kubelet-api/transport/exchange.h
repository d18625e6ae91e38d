// What a request of cpprestsdk carries along here: who sent it, and how an open file is answered with.
#pragma once

#include <cpprest/http_msg.h>

#include <cstdint>
#include <future>
#include <optional>
#include <stop_token>

#include "engine/base/unique_fd.h"
#include "kubelet-api/transport/connection.h"

namespace stasis::kubelet_api {

/// Lives as long as its request is handled, on the connection's own thread.
struct Exchange {
  std::optional<CertificateSubject> certificate;
  std::string network;   ///< Where it came from, as bounds count it.
  int socket = -1;       ///< To see whether the client is still there.
  std::stop_token stop;  ///< Requested when the server ends.

  /// Set by a handler when it knows whose the request is: such a connection is not given up for a stranger's.
  bool authenticated = false;

  /// Set by a handler in place of the response's body: this much of the file, from here on.
  UniqueFd file;
  std::uint64_t file_offset = 0;
  std::uint64_t file_size = 0;

  std::promise<web::http::http_response> response;
};

/// The exchange that `request`, which came through HttpServer, belongs to.
Exchange& ExchangeOf(const web::http::http_request& request);

}  // namespace stasis::kubelet_api
