#include "engine/held_sink.h"

#include "unit/support/matchers.h"
#include "unit/support/memory_images.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

TEST(HeldSinkTest, HoldsFilesUntilTheyArePassedOnInTheirOrder) {
  MemoryImages images;
  HeldSink held(images);
  held.Prepare(1, 1);
  for (const char* const name : {"b.img", "a.img"}) {
    auto stream = held.Open(name, 6);
    ASSERT_THAT(stream, IsOk());
    ASSERT_THAT((*stream)->Write(Bytes("abc")), IsOk());
    ASSERT_THAT((*stream)->Write(Bytes("def")), IsOk());
    ASSERT_THAT((*stream)->Finish(), IsOk());
  }
  EXPECT_TRUE(images.files.empty());
  ASSERT_THAT(held.PassOn(), IsOk());
  EXPECT_EQ(images.order, (std::vector<std::string>{"b.img", "a.img"}));
  EXPECT_EQ(images.files.find("a.img")->second, "abcdef");
}

TEST(HeldSinkTest, KeepsItsContentWhileMemoryIsGivenBack) {
  MemoryImages images;
  HeldSink held(images);
  const std::vector<std::size_t> sizes = {3'000'000, 1, 5'000'001, 0, 4'194'304, 2'097'151};
  held.Prepare(HeldSink::kMostBytes, sizes.size());
  for (std::size_t at = 0; at < sizes.size(); ++at) {
    const std::string content(sizes[at], static_cast<char>('a' + at));
    auto stream = held.Open("pages-" + std::to_string(at), content.size());
    ASSERT_THAT(stream, IsOk());
    ASSERT_THAT((*stream)->Write(Bytes(content)), IsOk());
    ASSERT_THAT((*stream)->Finish(), IsOk());
  }
  ASSERT_THAT(held.PassOn(), IsOk());
  for (std::size_t at = 0; at < sizes.size(); ++at) {
    EXPECT_EQ(images.files.find("pages-" + std::to_string(at))->second,
              std::string(sizes[at], static_cast<char>('a' + at)));
  }
}

TEST(HeldSinkTest, WhatIsTooMuchGoesThrough) {
  MemoryImages images;
  HeldSink held(images);
  const std::string large(HeldSink::kMostBytes + 1, 'x');
  auto stream = held.Open("large.img", large.size());
  ASSERT_THAT(stream, IsOk());
  ASSERT_THAT((*stream)->Write(Bytes(large)), IsOk());
  ASSERT_THAT((*stream)->Finish(), IsOk());
  EXPECT_TRUE(images.files.contains("large.img"));
}

TEST(HeldSinkTest, MoreBytesThanAnnouncedAreRefused) {
  MemoryImages images;
  HeldSink held(images);
  auto stream = held.Open("a.img", 2);
  ASSERT_THAT(stream, IsOk());
  EXPECT_FALSE((*stream)->Write(Bytes("abc")).ok());
}

}  // namespace
}  // namespace stasis::engine
