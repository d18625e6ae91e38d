#include "engine/base/packed_bytes.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace stasis::engine {
namespace {

std::vector<std::byte> Bytes(std::initializer_list<std::pair<std::size_t, std::uint8_t>> some,
                             std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (const auto& [at, value] : some) bytes.at(at) = std::byte{value};
  return bytes;
}

TEST(PackedBytesTest, WhatIsPackedComesBack) {
  for (const auto& bytes : {
           Bytes({}, 0),
           Bytes({}, 3),
           Bytes({}, 4096),
           Bytes({{0, 1}}, 1),
           Bytes({{0, 1}, {2687, 9}}, 2688),
           Bytes({{7, 1}, {8, 2}, {64, 3}, {72, 4}, {99, 5}}, 100),
           Bytes({{3'000'001, 6}}, 3'000'007),
           std::vector<std::byte>(1'000'000, std::byte{7}),
           std::vector<std::byte>(5000, std::byte{0xff}),
       }) {
    const PackedBytes packed(bytes);
    EXPECT_EQ(packed.size(), bytes.size());
    EXPECT_EQ(packed.Unpack(), bytes);
  }
}

}  // namespace
}  // namespace stasis::engine
