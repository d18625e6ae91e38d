// SHA-256 over bytes as they come.
#pragma once

#include <openssl/evp.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "engine/base/status.h"

namespace stasis::archive {

class Sha256 {
 public:
  Sha256();
  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view text);
  /// 64 lower-case hexadecimal digits. Starts anew.
  std::string Finish();

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

std::string Sha256Of(std::string_view text);

/// The digest of `size` bytes of `fd` from `offset`.
/// `progress` gets the bytes read so far, and `size`. Cancelled: `stop` came first.
Result<std::string> Sha256Of(int fd, std::uint64_t offset, std::uint64_t size,
                             const std::function<void(std::uint64_t, std::uint64_t)>& progress = {},
                             const std::stop_token& stop = {});

}  // namespace stasis::archive
