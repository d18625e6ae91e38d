// What tells that a member of an archive is as it was written.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace stasis::archive {

/// XXH3 of 128 bits over bytes as they come, as xxh128sum(1) prints it.
class MemberDigest {
 public:
  MemberDigest();
  MemberDigest(const MemberDigest&) = delete;
  MemberDigest& operator=(const MemberDigest&) = delete;
  ~MemberDigest();

  void Update(std::span<const std::byte> bytes);
  /// 32 lower-case hexadecimal digits. Starts anew.
  std::string Finish();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace stasis::archive
