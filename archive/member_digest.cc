// Source  doc/xxhash_spec.md of xxHash 0.8: the canonical form of a digest is big-endian
#include "archive/member_digest.h"

#define XXH_INLINE_ALL
#include <absl/strings/escaping.h>
#include <xxhash.h>

namespace stasis::archive {

struct MemberDigest::State {
  XXH3_state_t xxh3;
};

MemberDigest::MemberDigest() : state_(std::make_unique<State>()) {
  XXH3_INITSTATE(&state_->xxh3);
  XXH3_128bits_reset(&state_->xxh3);
}

MemberDigest::~MemberDigest() = default;

void MemberDigest::Update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::string MemberDigest::Finish() {
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(&state_->xxh3));
  XXH3_128bits_reset(&state_->xxh3);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.digest), sizeof(digest.digest)));
}

}  // namespace stasis::archive
