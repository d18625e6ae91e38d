#include "archive/sha256.h"

#include <absl/strings/escaping.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kPiece = std::size_t{256}
                               << 10;  // larger is no faster, and leaves the L2 cache

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
}

void Sha256::Update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size());
}

void Sha256::Update(std::string_view text) {
  Update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string Sha256::Finish() {
  std::array<unsigned char, 32> digest;
  EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr);
  EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

std::string Sha256Of(std::string_view text) {
  Sha256 hash;
  hash.Update(text);
  return hash.Finish();
}

Result<std::string> Sha256Of(int fd, std::uint64_t offset, std::uint64_t size,
                             const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                             const std::stop_token& stop) {
  Sha256 hash;
  std::vector<std::byte> piece(std::min<std::uint64_t>(size, kPiece));
  for (const std::uint64_t end = offset + size; offset < end;) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(end - offset, piece.size()));
    if (stop.stop_requested()) return Cancelled("nobody waits for the digest any more");
    RETURN_IF_ERROR(ReadExactAt(fd, part, offset));
    hash.Update(part);
    offset += part.size();
    if (progress) progress(size - (end - offset), size);
  }
  return hash.Finish();
}

}  // namespace stasis::archive
