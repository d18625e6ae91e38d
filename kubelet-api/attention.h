// Whether an answer is still wanted.
#pragma once

#include <stop_token>
#include <thread>

#include "engine/base/stop.h"
#include "engine/base/unique_fd.h"
#include "kubelet-api/transport/exchange.h"

namespace stasis::kubelet_api {

/// Requests a stop when the client hangs up, or the server ends.
class Attention {
 public:
  explicit Attention(const Exchange& exchange);
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;
  ~Attention();

  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
  UniqueFd done_;  // an eventfd that ends the watcher
  std::stop_callback<PassStop> server_ends_;
  std::thread watcher_;
};

}  // namespace stasis::kubelet_api
