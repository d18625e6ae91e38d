// Structs of the kernel in bytes that are not aligned for them: netlink, images.
#pragma once

#include <string_view>
#include <type_traits>

namespace stasis::engine {

/// The first bytes of `bytes`; what is missing there is zero.
template <typename T>
T ReadAs(std::string_view bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value = {};
  bytes.copy(reinterpret_cast<char*>(&value), sizeof(value));
  return value;
}

}  // namespace stasis::engine
